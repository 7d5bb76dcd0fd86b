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

All in float64 and without sampling; values, gradients and entropies themselves are in `etr.exact`.
"""
