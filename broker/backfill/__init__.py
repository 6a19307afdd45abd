"""What a service missed before it first started, read from the event log before it consumes its queue.

The first start of a service with ``backfill="7d"``:

1. It takes a lock: one process backfills, the others wait.
2. It declares the queue ``SERVICE.backfill``. In it, one message notes how far it is.
3. It looks up the log's end, declares and binds its queue, and a moment later looks up the log's end again. What is
   between these ends, the seam, may be both in the log and in the queue; what comes later is in the queue.
4. It reads the log up to the seam's end. What it subscribes to is handled as what is delivered is: by the same
   handlers, with the same retries and dead letters, through the same inbox.
5. Only now it consumes its queue, and acknowledges unhandled what it has handled already, told by (source, id).
6. When nothing of the seam can be left in the queue, ``SERVICE.backfill`` is deleted.

Rules:

- ``SERVICE.backfill`` exists exactly while a backfill is unfinished: whoever starts next goes on where it says. A
  service that has a queue and no such note has started before, and does not backfill.
- A message of the log is noted as done when it is, and all before it are.
- As with deliveries, an event that kills its process is found alone: what may have been begun before a crash is handled
  one by one, and dead-lettered after `broker.topology.DELIVERY_LIMIT` times.
- Who loses the connection that holds the lock finishes what is in hand, and begins at 1: another may have gone on.
"""

from broker.backfill.note import begin_of
from broker.backfill.process import Backfill

__all__ = ["Backfill", "begin_of"]
