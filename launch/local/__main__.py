"""`python -m downpour.launch.local`."""

from downpour.launch.local.run import main

main()
