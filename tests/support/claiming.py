"""What other processes do in tests of shared names: a module that they can import, unlike a test's own."""

from pdd_vllm_plugin.processes.folder import SharedFolder
from pdd_vllm_plugin.processes.shared_counts import SharedCounts
from pdd_vllm_plugin.processes.shared_names import SharedNames

COUNT = 3


def names_of(base, rank):
    folder = SharedFolder(base, "real")
    return SharedNames(folder.fd, SharedCounts(folder.fd, rank, COUNT))


def claim_each(base, rank, ids, start, won):
    names = names_of(base, rank)
    mine = []
    for at in range(0, len(ids), 20):
        start.wait()  # so that they stay together
        mine += [one for one in ids[at : at + 20] if names.claim(one)]
    won.put(mine)


def claim_without_end(base, rank, ready):
    names = names_of(base, rank)
    for number in range(10**9):
        name = f"of-{rank}-{number}"
        names.claim(name)
        names.ended(name)
        names.bury(name)
        names.free(name, ended=False)
        if number == 100:
            ready.set()
