"""Floor 5: the toy laboratory. Hundreds of runs as one batch, on CPU, with exact metrics."""

import toy_envs
from etr import plugins

toy_envs.add_source(plugins.load)  # an environment whose name toy_envs does not have may be a plugin's
