"""Keys of the files that a run keeps inside a store, relative to the store."""

RUN_FOLDER = "_run"  # plan, receipts and completion mark; ignored by Zarr readers
PLAN_KEY = f"{RUN_FOLDER}/plan.json"
CURRENT_KEY = f"{RUN_FOLDER}/current.json"  # digest of the store's plan, to avoid reading the whole plan
BEGINNING_KEY = f"{RUN_FOLDER}/beginning.json"  # exists while a store is being begun; its content may then be deleted
LEASES = f"{RUN_FOLDER}/lease"  # prefix of all lease files and of nothing else
