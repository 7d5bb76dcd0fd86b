"""Floor 2: more than values: geometry, entropy dynamics, and what a sampled gradient is on average, exactly.

| module | answers |
|---|---|
| `divergences` | how far apart are two policies? KL in both directions, total variation |
| `fisher` | Fisher matrix of a tabular policy, natural gradient |
| `entropy` | what does a small step do to the entropy, and which token is to blame? |
| `groups` | every group of G answers and rewards, with its probability |
| `critic` | what will a policy earn from each state on? |
| `estimator` | mean, bias, covariance and signal-to-noise of any objective's gradient, by enumeration |
| `population` | what a group advantage optimises: closed forms in the success rate and the group size |
| `token_entropy` | how does the update of each sampled token change the entropy? |
| `trpo` | where does TRPO's exact step end? |
| `hnpg` | natural gradient with a critic from on-policy and offline data, one mirror step |
| `igt` | variance-reduced policy gradients with one sample per step |
| `policy_cliff` | where does the best policy jump, and what does an entropy bonus do about it? |
| `quantal_response` | two players who choose softly: from uniform play to Nash's |
| `inpo` | self-play by mirror descent in a preference game |
| `differential_information` | which preferences make DPO's log-ratio reward the right one? |
| `soft_grpo` | the log-density of a soft token, by its Gumbel noise |

All in float64 and without sampling; values, gradients and entropies themselves are in `etr.exact`.
"""
