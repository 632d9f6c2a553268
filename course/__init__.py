"""The build tool of The PyTorch Playground.

People write in ``chapters/``; everything else a reader sees is made from it, executed and checked by this package.
``python -m course --help`` lists the commands.
"""
