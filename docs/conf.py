"""The settings of Sphinx, which makes a site of these pages: scripts/docs."""

project = "minitrain"
author = "the authors of minitrain"
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # links name headings as on a code host
html_theme = "furo"
html_title = "minitrain"
