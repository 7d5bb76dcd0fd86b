"""Floor 6, promotion: a recipe that passed `etr validate` becomes the folder of a real training run.

Nothing is imported here: the adapters read promoted recipes in environments that have only what their host needs.
"""
