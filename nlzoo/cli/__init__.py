"""The command line: parse, one call, print. One file a command group; nothing heavy is imported before it is needed.

app         all commands, in the order of `nlzoo --help`, and `main`
options     options that several commands share; arguments: what is wrong with them; console: the only printer
networks, videos, training, answers, hub, machine    the commands
"""
