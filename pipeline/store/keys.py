"""Names of what a run keeps inside a store, beside what Zarr readers see. In: nothing. Out: keys, relative to it."""

RUN_FOLDER = "_run"  # plan, receipts and completion mark; ignored by Zarr readers
PLAN_KEY = f"{RUN_FOLDER}/plan.json"
CURRENT_KEY = f"{RUN_FOLDER}/current.json"  # which plan the store is of, for those who must not read the whole plan
BEGINNING_KEY = f"{RUN_FOLDER}/beginning.json"  # there while a store is begun: what it holds may be removed
LEASES = f"{RUN_FOLDER}/lease"  # what leases consist of begins with this, and nothing else does
