//! Cases that belong together.

/// Cases that the in-memory runtime cannot run, pretence included, and why. That they can fail has
/// to be shown on an engine with processes.
pub const ELSEWHERE: &[(&str, &[&str])] = &[
    (
        "runs have to outlive the process that started them, and it is killed",
        &[
            "a_killed_holder_frees_the_lease",
            "a_killed_process_has_cancelled",
            "a_killed_start_can_be_cleaned_up",
            "a_killed_start_is_abandoned",
            "a_killed_starter_leaves_its_run",
            "the_deadline_outlives_its_process",
        ],
    ),
    (
        "the memory of a process is measured in which the engine is not",
        &[
            "collecting_takes_constant_memory",
            "giving_takes_constant_memory",
            "reading_logs_takes_constant_memory",
        ],
    ),
];

/// Those about a spec that asks for what is not declared.
pub(super) const REFUSALS: &[&str] = &[
    "undeclared_deadline_is_unsupported",
    "undeclared_egress_is_unsupported",
    "undeclared_grace_is_unsupported",
    "undeclared_mounts_host_path_is_unsupported",
    "undeclared_mounts_scratch_is_unsupported",
    "undeclared_mounts_scratch_limit_is_unsupported",
    "undeclared_mounts_stream_is_unsupported",
    "undeclared_mounts_volume_is_unsupported",
    "undeclared_mounts_volume_part_is_unsupported",
    "undeclared_outputs_file_is_unsupported",
    "undeclared_outputs_folder_is_unsupported",
    "undeclared_resources_cpu_is_unsupported",
    "undeclared_resources_gpu_is_unsupported",
    "undeclared_resources_memory_is_unsupported",
    "undeclared_resources_pids_is_unsupported",
    "undeclared_resources_scratch_is_unsupported",
    "undeclared_supplementary_groups_is_unsupported",
    "undeclared_trust_is_unsupported",
];

/// Those in which `cancel` has to end a run.
pub(super) const CANCELS: &[&str] = &[
    "a_running_run_is_cancelled",
    "who_ignores_the_request_is_killed",
    "a_shorter_grace_shortens",
    "a_run_is_cancelled_before_it_starts",
    "a_restart_remembers_the_cancel",
    "cleanup_shows_no_other_end",
    "a_deadline_changes_no_cancel",
    "a_grace_of_zero_kills",
    "a_longer_grace_does_not_lengthen",
    "a_pull_can_be_cancelled",
    "a_slow_engine_changes_nothing",
    "cancel_can_be_dropped_anywhere",
    "cancelling_twice_is_no_error",
    "delayed_calls_can_be_repeated",
    "failed_calls_can_be_repeated",
    "who_ends_on_request_was_cancelled",
];

/// Those in which another process sees how a run ended.
pub(super) const RESTARTS: &[&str] = &[
    "a_restart_adopts_running_runs",
    "a_restart_reads_finished_runs",
    "a_restart_remembers_the_cancel",
    "every_run_is_listed_whole",
    "a_watch_begins_with_everything",
    "cancelling_the_finished_does_nothing",
    "the_deadline_holds_alone",
    "connections_reach_a_restarted_process",
    "a_deadline_changes_no_cancel",
    "a_lost_answer_starts_nothing_twice",
    "a_run_may_be_over_before_the_first_look",
    "a_start_can_be_cancelled_at_any_moment",
    "an_end_has_its_times",
    "annotations_may_be_large",
    "cancelling_twice_is_no_error",
    "who_ends_in_time_has_met_it",
];
