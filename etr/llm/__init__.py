"""The same objectives on a real language model: models, tasks, rollouts, log-probabilities, checkpoints, evaluation."""
