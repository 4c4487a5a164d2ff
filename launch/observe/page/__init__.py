"""The page that a chief serves to browsers: what runs, live; one HTML, one CSS and one JS file, and a small server."""

from __future__ import annotations

ADDRESS_FILE = "page.address"  # in the folder of the run, while its chief serves the page: the URL
