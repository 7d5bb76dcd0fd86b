"""Floor 4: ninety-five systems of the field: which are here under which name, and why the others are not.

The list is that of the papers this project started from. An objective is found by `etr show NAME`; a theory entry is a
module of functions. Entries without an arXiv number were dated by month only.
"""

from __future__ import annotations

from typing import NamedTuple


class System(NamedTuple):
    """found: names of objectives, or modules of functions (with a dot); reason: five words at most if there is none."""

    number: int
    name: str
    arxiv: str
    category: str
    found: tuple[str, ...]
    reason: str


CATEGORIES = {
    "a": "trust region",
    "b": "advantage",
    "c": "entropy",
    "d": "sampling",
    "e": "theory",
    "f": "outside",
}
# name | arXiv number or month | category | names here, or "- reason"
TABLE = """
ETR, Elastic Trust Regions | 2601.03723 | a | etr
BandPO | 2603.04918 | a | bandpo
RI-FedAvg | 2026-02 | f | - federated learning, no policy
DPPO, Divergence PPO | 2602.04879 | a | dppo_tv dppo_kl
OAR | 2601.07408 | b | oar
MAESTRO | 2601.07208 | b | maestro
VGPO | 2025-12 | f | - flow matching, no tokens
DaGRPO | 2512.06337 | b | dagrpo
ESPO, entropy importance sampling | 2512.00499 | a | espo
GRPO-Guard | 2510.22319 | f | grpo_guard
GVI-DA | 2025-07 | f | - domain adaptation, no policy
RG losses, NDCG-consistent softmax | 2025-06 | f | - ranking losses, no rewards
DISCO, domain- and difficulty-aware | 2505.15074 | b | disco
Distributional robustness in RL | 2020-03 | f | - regularises value functions only
EMPG | 2509.09265 | b | empg
EPO, entropy-regularised for agents | 2509.22576 | c | epo
AEPO, Arbitrary Entropy PO | 2510.08141 | c | aepo_arbitrary
EMPO | 2504.05812 | b | empo
N-PG-IGT, (N)-HARPG | 2023-02 | e | etr.oracles.igt
Entropy Mechanism: Clip-Cov, KL-Cov | 2505.22617 | c | clip_cov kl_cov
STEER | 2025-10 | c | steer
ARES, Adaptive Entropy PO | 2025-10 | b | ares
DCPO, Distribution-Centric PO | 2026-01 | c | dcpo_distribution
PMOE, mixture of experts | 2021-04 | f | - continuous control, Gaussian mixtures
Entropy Dynamics: Clip_B, Clip_V | 2602.03392 | e | clip_b clip_v
D^3S | 2509.22115 | d | d3s
Agentic Entropy-Balanced PO (AEPO) | 2510.14545 | b | aepo_agentic
ProGRPO (ARM) | 2602.05281 | b | arm
ODICE | 2024-02 | f | - offline RL without rollouts
HAPO | 2509.16591 | b | hapo
RiskPO, Mixed VaR | 2025-10 | b | riskpo
APO (View-R1) | 2506.21655 | b | apo
GROOVE (LPG, UED) | 2023-10 | f | - meta-learns environment curricula
QARL (RARL) | 2023-11 | f | etr.oracles.quantal_response
OBLR-PO | 2511.23310 | e | optimal_baseline
GTPO, trajectory-based | 2508.03772 | b | gtpo
TS-DDR | 2024-05 | f | - constrained continuous control
BAPO, balanced adaptive clipping | 2510.18927 | a | bapo
HNPG, hybrid natural gradient | 2023-11 | e | etr.oracles.hnpg
Lp-Reg | 2510.03222 | c | lp_reg
SofT-GRPO | 2025-11 | d | etr.oracles.soft_grpo
f-DPG (GDC, DPG) | 2302.08215 | c | f_dpg
EARL (RTL code) | 2511.12033 | c | earl
Policy Cliff | 2507.20150 | e | etr.oracles.policy_cliff
AffectGPT-R1 | 2025-08 | f | - a task's reward only
Prompt augmentation GRPO | 2602.03190 | d | etr.llm.data.templates
EVODiff | 2025 | f | - diffusion inference, no training
Empirical-MCTS | 2026-02 | f | - inference-time search, no training
SIREN | 2509.25133 | c | siren
T-PPO, Truncated PPO | 2506.15050 | a | tppo
HPT, Unified Policy Gradient Estimator | 2509.04419 | e | hpt etr.unified
SEED-GRPO | 2505.12346 | b | seed_grpo
Differential Information for DPO | 2025-05 | e | etr.oracles.differential_information
CAPO, Curvature-Aware PO | 2510.00819 | a | capo
Contextual bandits at Adyen | 2024-11 | f | - an industrial case study
CoPG | 2406.19185 | e | copg
SAFE | 2026-02 | c | safe
SPEAR | 2509.22601 | d | spear
Implicit PRM | 2024-12 | b | implicit_prm
GDPO | 2601.05242 | b | gdpo
EtCon (TPSFT) | 2025-12 | f | - knowledge editing, GRPO unchanged
TRPA | 2504.04524 | a | trpa
Hyper++ | 2025-12 | f | - hyperbolic networks, not losses
MDPO, mirror descent | 2005.09814 | a | mdpo
R^2VPO | 2601.03320 | a | r2vpo
IterResearch (EAPO) | 2511.07327 | b | eapo
ICPO, In-Context Steered PO | 2510.26519 | d | icpo
GHPO | 2025-07 | d | ghpo
SearchGym, SearchGym-RL | 2026-01 | f | - environment and curriculum only
SePPO | 2024-10 | f | - diffusion preferences, no tokens
GUI-RC, GUI-RCPO | 2025-08 | f | - screen regions; compare `empo`
Dataset perspective on offline RL | 2021-11 | f | - a study of datasets
CRAFT-GUI | 2025-08 | f | - GUI curriculum, GRPO unchanged
POPE | 2601.18779 | d | pope
DR-RPO | 2025-10 | f | - theory of robust MDPs
Data-centric trustworthy ML | 2023-07 | f | - a survey
Agnostic RL | 2025-06 | f | - a thesis on theory
ADORA | 2602.10019 | b | adora
IGPO, information gain | 2510.14967 | b | igpo
Actor-Critics, optimal sample efficiency | 2025-05 | f | - theory without a method
Polychromic objectives | 2509.25424 | b | polychromic
Effective horizon, SQIRL | 2023-12 | f | - theory of deep RL
DHPO, hybrid ratios | 2601.05607 | a | dhpo
GA-MATR | 2024-01 | f | - control of many drones
INPO | 2024-06 | e | etr.oracles.inpo
ADPO, Anchored DPO | 2025-10 | a | adpo
A2PR | 2024-05 | f | - offline RL without rollouts
PARL (A-PARL) | 2023-08 | f | - bilevel theory, reward design
DSDR | 2602.19895 | b | dsdr
COPO, consistency-aware | 2508.04138 | b | copo
DSRL | 2025-06 | f | - steers diffusion policies
SPO, Minimaximalist | 2024-01 | b | spo_minimax
CAD-RL | 2025-08 | f | - CAD rewards, DAPO's loss
V-GPS | 2024-10 | f | - re-ranks robot actions
PRDC | 2023-06 | f | - offline RL without rollouts
"""


def _systems() -> tuple[System, ...]:
    rows = []
    for number, line in enumerate(TABLE.strip().splitlines(), start=1):
        name, arxiv, category, where = (cell.strip() for cell in line.split("|"))
        found, reason = ((), where[2:]) if where.startswith("- ") else (tuple(where.split()), "")
        rows.append(System(number, name, arxiv, CATEGORIES[category], found, reason))
    return tuple(rows)


SYSTEMS = _systems()
