"""Names of what a run keeps inside a store, beside what Zarr readers see. In: nothing. Out: keys, relative to it."""

RUN_FOLDER = "_run"  # plan, receipts and completion mark; ignored by Zarr readers
PLAN_KEY = f"{RUN_FOLDER}/plan.json"
