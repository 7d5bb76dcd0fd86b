"""Settings of the site: `make docs` builds it, executes the notebooks, and treats warnings as errors."""

import os
import sys
from pathlib import Path

os.environ.setdefault("ETR_PLUGINS", "none")  # a plugin of the builder's own is no part of this site

import etr

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "etr"
author = "The etr authors"
release = etr.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "from_code"]
include_patterns = ["**.md", "notebooks/[0-9]*.py"]  # any other .py is no page
exclude_patterns = ["_build"]

# Notebooks are text; the build runs them, and a failing cell fails the build. FAST=1 shortens their loops.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300

myst_enable_extensions = ["colon_fence"]  # no dollar math: it would load MathJax from another server
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = "etr"
html_copy_source = False
html_show_copyright = False
