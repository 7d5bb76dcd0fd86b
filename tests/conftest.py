"""Settings of the whole test suite."""

from hypothesis import settings

# No deadline: how long an example takes says something about the machine, not about the code. Derandomised: a red test
# is red again on the next run.
settings.register_profile("etr", deadline=None, derandomize=True)
settings.load_profile("etr")
