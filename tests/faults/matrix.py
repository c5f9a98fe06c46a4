"""The fault matrix: what is done to a run, what must come of it, and the tests that show it."""

from __future__ import annotations

from dataclasses import dataclass

E2E, RESUME, CLUSTER = "execution/test_end_to_end.py", "execution/test_resume.py", "execution/test_cluster.py"
QUARANTINE, WORK, SHARDS = "execution/test_quarantine.py", "execution/test_work.py", "execution/test_shards.py"
CATALOG, ACCESS, AOI, CUBE = (f"archive/test_{name}.py" for name in ("catalog", "access", "aoi", "cube"))
SUPERRES, POLITE, SCALING = "superres/test_superres.py", "archive/test_politeness.py", "execution/test_scaling.py"
LAYOUT, COMMAND, RELEASED = "store/test_layout.py", "test_run_command.py", "execution/test_released_weights.py"
STORE_FAULTS, OBJECTS = "store/test_place.py::TestFaults", "execution/test_object_store.py"
FILES, DRIVER, SECRETS = (f"faults/test_{name}.py" for name in ("archive_files", "driver_faults", "secrets"))
PASSES = f"{FILES}::test_a_fault_that_passes_leaves_no_trace"
STAYS = f"{FILES}::test_a_fault_that_stays_is_never_nodata"


@dataclass(frozen=True)
class Row:
    """One fault. `tests` are node ids below tests/; a bare function name stands for all its parameters.

    No test is named by two rows, as a whole or in part: what a row says was seen is its own.
    """

    fault: str
    injected: str
    expected: str
    tests: tuple[str, ...]


ROWS = (
    Row("worker killed at work", "kill -9 of a worker process", "unit done again, same bytes",
        (f"{RESUME}::test_a_killed_worker_is_replaced_and_its_unit_done_again",)),
    Row("a unit fails for good", "poisoned unit, alone too", "set aside, exit 4, repaired to the same bytes",
        (f"{QUARANTINE}::test_a_unit_that_always_fails_is_set_aside_and_the_rest_is_published",)),
    Row("a unit fails only beside others", "poisoned pool", "computed alone in a process, same bytes",
        (f"{QUARANTINE}::test_a_unit_that_fails_only_beside_others_is_computed_alone",)),
    Row("all units fail", "poisoned units", "stops early, nothing set aside, continues to the same bytes",
        (f"{QUARANTINE}::test_failures_beyond_one_percent_stop_the_run_early_and_set_nothing_aside",)),
    Row("driver killed, ten times", "kill -9 at seeded moments", "same bytes, only the unit in hand done again",
        (f"{DRIVER}::test_ten_kills_at_seeded_moments_lose_at_most_the_unit_at_work",)),
    Row("process group killed", "kill -9 of the group, inline and two workers", "same bytes, no partial file left",
        (f"{RESUME}::test_kill_9_of_the_whole_group_then_the_same_command_gives_the_same_bytes",)),
    Row("asked to stop", "SIGINT, SIGTERM", "units in hand end, exit 75, continues to the same bytes",
        (f"{RESUME}::test_ctrl_c_drains_exits_75_and_continues",)),
    Row("worker lost after its work", "closed before it handed over the receipt", "waited for again, no attempt spent",
        (f"{CLUSTER}::test_a_receipt_that_dies_with_its_worker_is_waited_for_again",)),
    Row("scheduler dies", "kill -9 of the Dask scheduler", "driver ends with 75, no hang",
        (f"{CLUSTER}::test_a_scheduler_that_dies_ends_the_driver_with_75",)),
    Row("a worker's job ends early", "kill -9 of the job", "another is asked for, while units are left",
        (f"{SCALING}::test_jobs_are_asked_for_as_units_are_left_and_an_ended_one_is_replaced",)),
    Row("scheduler open to others", "tcp:// beyond loopback", "refused before anything is sent",
        (f"{CLUSTER}::test_a_scheduler_that_others_can_reach_needs_encryption",)),
    Row("a worker lags", "a unit that never ends", "a twin on an idle worker, first receipt counts",
        (f"{WORK}::test_a_straggler_gets_a_twin_and_the_first_receipt_counts",)),
    Row("STAC API stumbles", "429, 500, 502, 503, 504, reset, hang, truncated", "no scene is lost",
        (f"{CATALOG}::test_faults_that_pass_cost_no_scene",)),
    Row("STAC API asks to wait", "Retry-After", "waited for, up to our patience",
        (f"{CATALOG}::test_retry_after_is_honoured_up_to_our_patience",)),
    Row("STAC API stays away", "endless 503, 429, HTML, bad JSON", "one line with the host, exit 5 or 75",
        (f"{CATALOG}::test_faults_that_stay_end_in_one_line_with_the_host",)),
    Row("STAC pages lie", "empty page with next, circles, endless pages, counts", "all items, or an error",
        (f"{CATALOG}::test_a_list_that_runs_in_a_circle_is_an_error", f"{CATALOG}::test_endless_pages_are_cut_off",
         f"{CATALOG}::test_a_loop_without_a_count_is_split_by_month")),
    Row("STAC items are bad", "the list of 25 kinds", "left out with a reason, or used rightly",
        (f"{CATALOG}::test_bad_items_are_rejected_with_a_reason", f"{CATALOG}::test_odd_items_are_still_scenes")),
    Row("AOI files are bad", "the list of 42 kinds", "exit 2, one line with file and place",
        (f"{AOI}::test_bad_files_are_refused_in_one_line_with_file_and_place",)),
    Row("file server busy", "429, 503, 500 once", "same bytes",
        (f"{PASSES}[429]", f"{PASSES}[503]", f"{PASSES}[500]")),
    Row("file server asks to wait", "429 or 503 with Retry-After", "no read of that host begins in that time",
        (f"{POLITE}::test_a_host_that_asks_to_wait_is_left_alone_by_all_reads",
         f"{POLITE}::test_those_refused_together_ask_once")),
    Row("file server grants few connections", "requests counted at the server", "never more, shared by processes",
        (f"{POLITE}::test_a_host_sees_as_many_connections_as_are_this_process_share",)),
    Row("host costs too many retries", "resets", "counts as away: submission pauses",
        (f"{POLITE}::test_retries_beyond_the_budget_mean_that_the_host_is_away",)),
    Row("connection reset", "closed without an answer, once", "same bytes", (f"{PASSES}[reset]",)),
    Row("file missing for a moment", "404 once", "same bytes; the 404 is not remembered",
        (f"{PASSES}[404]", f"{ACCESS}::test_a_404_that_goes_away_is_forgotten")),
    Row("file missing for good", "404 or 410 always", "left out and said so, or exit 5; never nodata",
        (f"{STAYS}[404]", f"{STAYS}[410]", "execution/test_remote.py")),
    Row("token expired", "403 until the token is new", "signed again once, same bytes",
        (f"{SECRETS}::test_a_token_that_ends_early_is_renewed_once_and_leaves_the_same_bytes",
         f"{ACCESS}::test_refused_access_is_refreshed_once_and_then_tried_twice_more",
         f"{ACCESS}::test_tokens_are_renewed_five_minutes_before_their_end_and_on_refresh")),
    Row("access refused for good", "403 always", "exit 5, one line with the cure",
        (f"{SECRETS}::test_access_that_stays_refused_is_one_line_with_the_cure",)),
    Row("body short or damaged, once", "half a body; inverted bytes", "same bytes",
        (f"{PASSES}[truncated]", f"{PASSES}[corrupt]")),
    Row("body short for good", "half a body always", "left out and said so, or exit 5", (f"{STAYS}[truncated]",)),
    Row("band file truncated or swapped on disk", "cut, emptied, other band", "exit 5 with scene and band, no pixel",
        (f"{E2E}::TestNeverSilent",)),
    Row("zeroed range in an uncompressed file", "40 rows of zeros", "told with band and count; stays nodata",
        (f"{FILES}::test_zeros_that_the_classification_contradicts_are_told",)),
    Row("slow and flaky archive", "latency, 5 % 503, 1 % truncated, seeded", "same bytes",
        (f"{FILES}::test_latency_and_scattered_faults_leave_no_trace",)),
    Row("archive away for long", "no answer", "submission pauses, longer each time; then exit 75",
        (f"{WORK}::test_an_outage_pauses_submission_longer_each_time_and_costs_no_attempt",
         f"{WORK}::test_an_outage_that_lasts_ends_with_75_and_names_the_archive")),
    Row("disk full", "ENOSPC", "exit 6 at once, continues with space again",
        (f"{CLUSTER}::test_a_full_disk_stops_the_run_at_once",)),
    Row("output refused", "a file, a foreign folder, no permission, a missing parent", "exit 2 or 6, nothing touched",
        (f"{COMMAND}::TestOutput", f"{RESUME}::test_what_is_not_ours_is_never_touched")),
    Row("object store stumbles", "503 SlowDown, 500, 429, lost answers, latency on PUT and GET", "same bytes",
        (f"{OBJECTS}::test_what_a_server_may_do_changes_no_byte", f"{STORE_FAULTS}::test_that_pass_are_sat_out",
         f"{STORE_FAULTS}::test_an_answer_lost_after_creating_is_no_conflict",
         f"{STORE_FAULTS}::test_a_creation_that_lost_to_another_with_its_answer_lost_is_a_conflict",
         f"{STORE_FAULTS}::test_a_server_without_conditional_puts_lets_the_last_win")),
    Row("object store away", "no answer, in mid-run and at the start", "sat out, then exit 75 with the host",
        (f"{OBJECTS}::test_an_outage_that_passes_is_sat_out",
         f"{OBJECTS}::test_an_outage_ends_with_75_names_the_host_and_costs_no_unit",
         f"{STORE_FAULTS}::test_that_last_are_an_outage_named_by_host")),
    Row("object store refuses", "403, no bucket, no credentials, 507", "exit 6, nothing of the answer repeated",
        (f"{STORE_FAULTS}::test_a_refusal_repeats_nothing_of_the_answer", f"{STORE_FAULTS}::test_a_full_store_is_full",
         f"{STORE_FAULTS}::test_a_missing_bucket_is_named",
         f"{STORE_FAULTS}::test_missing_credentials_are_said_at_once",
         f"{OBJECTS}::test_bad_addresses_are_one_clear_line")),
    Row("run into an object store killed", "kill -9, a second run beside it", "same bytes; the second exits 2",
        (f"{OBJECTS}::test_kill_9_then_the_same_command_and_a_second_run_beside_it",)),
    Row("stored bytes change", "bit flips, truncation, deletion", "found by full verification, repaired to same bytes",
        (f"{RESUME}::test_damage_is_found_and_mended",
         f"{LAYOUT}::test_every_flipped_bit_raises_on_read_and_shows_in_full_verification")),
    Row("receipts damaged", "torn, other plan", "unit done again",
        (f"{LAYOUT}::test_receipts_are_believed_only_for_their_plan_and_when_whole",)),
    Row("weights unfit", "truncated, wrong digest, pickle, NaN, shapes, missing", "exit 2 before any work",
        (f"{COMMAND}::TestWeights", f"{RELEASED}::test_a_checkpoint_as_weights_names_the_converter",
         f"{RELEASED}::test_a_truncated_bundle_is_to_be_copied_again")),
    Row("networks give NaN", "NaN in one band", "unit fails, nothing written",
        (f"{DRIVER}::test_networks_that_give_nan_fail_the_unit_and_write_nothing",)),
    Row("GPU memory runs out", "torch.OutOfMemoryError, once and always",
        "reserve given back, once more, same pixels (windows go one by one: no batch to halve); else one clear line",
        (f"{SUPERRES}::test_memory_that_runs_out_once_costs_one_more_try_and_no_pixel",
         f"{SUPERRES}::test_a_window_that_does_not_fit_is_one_clear_line")),
    Row("memory too small", "limit below the plan", "exit 2 with the numbers",
        (f"{CLUSTER}::test_more_workers_than_memory_are_refused_with_the_numbers",)),
    Row("two drivers", "second run, second shard", "exit 2, names the holder",
        (f"{RESUME}::test_two_runs_of_one_store_do_not_meet",
         f"{SHARDS}::test_a_shard_has_one_worker_at_a_time_and_no_whole_run_beside_it")),
    Row("a shard is missing", "publication before its end", "exit 75 with the units",
        (f"{SHARDS}::test_publication_refuses_and_names_what_is_missing",)),
    Row("clock, zone, language", "a day ahead, TZ, LANG", "same plan, same bytes",
        (f"{DRIVER}::test_clock_zone_and_language_do_not_show",)),
    Row("no such host", "DNS failure", "one line with the host", (f"{CATALOG}::test_a_dead_host_is_named",)),
    Row("hostile addresses", "inner networks, VRT, nested drivers, ..", "refused",
        (f"{ACCESS}::test_everything_else_is_refused", f"{ACCESS}::test_any_public_host_excludes_the_inner_network",
         f"{CUBE}::test_a_file_that_points_to_other_files_is_not_opened_whatever_its_name")),
    Row("secrets in messages", "planted tokens and keys", "redacted in errors and records",
        (f"{ACCESS}::test_secrets_do_not_survive_redaction", "archive/test_redaction.py",
         f"{ACCESS}::test_final_errors_carry_no_secret_and_no_chain",
         f"{QUARANTINE}::test_the_record_tells_how_to_see_the_failure_again_and_no_secret")),
    Row("secrets anywhere", "planted in addresses, a password, a key; two workers, failures, all logs at DEBUG",
        "in no file, log, record, picture or line",
        (f"{SECRETS}::test_nothing_that_a_run_writes_or_says_holds_a_secret",
         f"{SECRETS}::test_the_search_would_find_one")),
    Row("a worker's error has causes", "an error of GDAL behind it", "arrives as what it is, without them",
        (f"{CLUSTER}::test_errors_keep_their_kind_and_leave_their_cause_behind_on_the_way_from_a_worker",)),
    Row("anything in any order", "stateful: stops, damage, lost receipts, repairs", "published means whole and right",
        (f"{DRIVER}::test_any_order_of_stops_damage_and_repairs_ends_in_the_same_store",)),
    Row("order, workers, unit size", "shuffled, 1 and 2 workers, three cuts", "same bytes",
        (f"{E2E}::test_chunks_never_show",)),
)  # fmt: skip
