"""The demo: the eight services as eight processes, and what a sceptic would want to see of them.

``python -m services.demo`` (or ``make demo``) finds RabbitMQ, starts the services, lets orders flow, kills one service
and starts it again, sends a broken event, and then counts: it believes the services' own commands, their data, their
log lines and RabbitMQ's queues, and nothing that it wrote down itself. Its exit status tells the truth.

================  ==========================================================================
``cli``           the command line, and the frame around the acts
``acts``          what happens, in seven acts
``stage``         what an act works with: waiting, and watching the processes meanwhile
``processes``     the eight processes: start, kill, stop; none outlives the demo
``lines``         their log lines
``commands``      the services' commands, run as a person would run them
``goods``         customers, items, addresses and orders to play with
``sequence``      who told whom: the arrows of one order, and the design's
``checks``        the differences between what is and what should be; the verdict
``view``          the live table, or plain lines
================  ==========================================================================
"""
