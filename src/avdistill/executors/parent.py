"""Worker processes that end with the process that started them, in whatever way that one ends."""

import multiprocessing
import os
import signal
import threading
import time

# How long a training may take to finish its step and save.
_SAVE_SECONDS = 30


def end_with_parent() -> None:
    """End this worker process of `multiprocessing` soon after its parent has ended, even by SIGKILL.

    The worker gets SIGTERM, upon which a training saves (`training.trainer`) and anything else ends; what has not ended
    after 30 seconds ends without a save. To be called first in a worker: as the `initializer` of a pool, or by the
    target of a process. A process that `multiprocessing` did not start has no parent to end with.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        # Not the parent's id: under "forkserver" that is the server's, and an id is read too late or used again.
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_SAVE_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
