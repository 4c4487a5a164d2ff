"""Downpour: asynchronous training with parameter servers.

The five packages below this one live at the top of the checkout (`ps/`, `worker/`, `model/`, `proto/`,
`launch/`); the links beside this file give them their import names, `downpour.ps` and so on.
"""

__version__ = "0.1.0"
