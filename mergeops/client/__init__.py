"""The merge service from Python: submit jobs, follow them, decide on proposals.

    from mergeops.client import connect

    service = connect()                      # the server of this project, or MERGEOPS_SERVER
    job = service.submit("search", ["recipe=runs", "strategy=optuna"])
    for line in service.follow(job["id"]):
        print(line)
    print(service.job(job["id"])["state"])

Stands on: errors, version.
"""

from mergeops.client.address import SERVER_FILE, Address, find_server
from mergeops.client.calls import ServiceClient, connect

__all__ = ["SERVER_FILE", "Address", "ServiceClient", "connect", "find_server"]
