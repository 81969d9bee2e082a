//! Every fault: what is wrong, and the cases that must see it.

use super::sets::{CANCELS, REFUSALS, RESTARTS};

seeds! {
    /// One way in which the in-memory runtime can be made to go wrong.
    Seed:

    "Starting a run" {
        /// `run` returns only when the run is over.
        RunWaitsForTheEnd [
            run_returns_before_the_end cleanup_of_a_live_run_needs_force outputs_wait_for_the_end
            following_ends_with_the_run connections_wait_for_a_reader a_running_run_is_cancelled
            who_ignores_the_request_is_killed a_shorter_grace_shortens a_run_is_cancelled_before_it_starts
            a_restart_remembers_the_cancel cleanup_shows_no_other_end connections_reach_a_restarted_process
            a_deadline_changes_no_cancel a_grace_of_zero_kills a_longer_grace_does_not_lengthen
            a_restarted_engine_keeps_what_was a_slow_engine_changes_nothing cancel_can_be_dropped_anywhere
            cancelling_twice_is_no_error delayed_calls_can_be_repeated failed_calls_can_be_repeated
            watching_costs_no_calls_per_run who_ends_on_request_was_cancelled
        ]
        /// `run` with the same spec again starts the program a second time.
        RunTwiceRunsTwice [
            the_same_run_is_adopted one_of_many_starters_creates a_restart_adopts_running_runs
            a_lost_answer_starts_nothing_twice run_can_be_dropped_anywhere
        ]
        /// `run` with the same spec again answers that it created the run.
        AdoptedIsCalledCreated [
            the_same_run_is_adopted one_of_many_starters_creates a_restart_adopts_running_runs
            a_lost_answer_starts_nothing_twice notes_and_deadline_do_not_count of_two_specs_one_wins
            run_can_be_dropped_anywhere
        ]
        /// `run` adopts whatever has the id, without comparing the specs.
        AnySpecIsAdopted [
            another_spec_conflicts of_two_specs_one_wins secret_files_reach_the_program_alone
            secrets_reach_the_program_alone
        ]
        /// `run` with another spec says that there is a conflict, and replaces the run.
        ConflictReplacesTheRun [
            another_spec_conflicts of_two_specs_one_wins secret_files_reach_the_program_alone
            secrets_reach_the_program_alone
        ]
        /// Annotations are part of what makes two specs the same.
        NotesCount [notes_and_deadline_do_not_count]
        /// `run` with the same spec again replaces annotations and deadline.
        LastNotesStay [notes_and_deadline_do_not_count]
        /// `run` adopts what is nobody's, if it has the name.
        StrangersAreAdopted [a_taken_name_conflicts]
        /// `run` gives up a slow engine, and says that nothing can be done about it.
        CallsAreGivenUpSoon [a_slow_engine_changes_nothing]
        /// `run` starts a run anew that has finished.
        FinishedRunsAreRunAgain [
            the_same_run_is_adopted another_spec_conflicts secret_files_reach_the_program_alone
            secrets_reach_the_program_alone
        ]
        /// Of concurrent calls of `run` all but the first fail.
        StartersGetInEachOthersWay [
            one_of_many_starters_creates a_cut_start_is_abandoned of_two_specs_one_wins run_can_be_dropped_anywhere
        ]
        /// Concurrent calls of `run` all answer that they created the run.
        EveryStarterCreates [one_of_many_starters_creates of_two_specs_one_wins]
        /// A call of `run` that is dropped leaves a lock.
        DroppedRunLeavesALock [
            one_of_many_starters_creates a_cut_start_is_abandoned of_two_specs_one_wins run_can_be_dropped_anywhere
        ]
        /// What a dropped call of `run` left can be completed only with its own spec.
        AbandonedKeepsItsSpec [a_cut_start_is_abandoned]
        /// What a dropped call of `run` left looks as if somebody were at work on it.
        AbandonedLooksAccepted [a_cut_start_is_abandoned]
        /// A call of `run` that is dropped leaves files.
        DroppedRunLeavesFiles [a_cut_start_can_be_cleaned_up run_dropped_anywhere_leaves_nothing]
        /// A spec that asks for what is not declared is accepted, and that part of it ignored.
        UndeclaredIsIgnored [undeclared_logs_follow_is_unsupported undeclared_logs_since_is_unsupported] + REFUSALS
        /// What is not declared is refused as if it were wrong on any backend.
        UndeclaredIsInvalid [undeclared_logs_follow_is_unsupported undeclared_logs_since_is_unsupported] + REFUSALS
        /// A refusal does not name the field.
        RefusalNamesNoField [a_wrong_spec_is_refused] + REFUSALS
        /// A refusal shows the spec, with its secrets.
        RefusalShowsTheSpec [secrets_are_in_no_refusal]
        /// A refused call of `run` ends the run that has the id.
        RefusalEndsTheRun [a_refusal_spares_the_run]
        /// A refused call of `run` has made the record already.
        RefusalLeavesARecord [a_wrong_spec_is_refused a_refusal_spares_the_run secrets_are_in_no_refusal] + REFUSALS
        /// A wrong argument is mended without a word.
        WrongIsMended [a_wrong_spec_is_refused a_refusal_spares_the_run]
    }
    "Images" {
        /// A run uses what the tag points at when it starts.
        TagInsteadOfDigest [a_moved_tag_changes_no_run]
        /// The status tells another name than the one that was resolved.
        StatusTellsTheTagOnly [
            exactly_the_resolved_image_is_told a_moved_tag_changes_no_run an_image_is_pulled_and_run
        ]
        /// An image that is gone fails the call of `run`.
        MissingImageIsAnError [
            a_missing_image_is_an_outcome a_failed_pull_is_an_outcome a_pull_can_be_cancelled
            a_pulling_run_can_be_cleaned_up a_slow_pull_delays_no_other_run the_deadline_ends_a_pull
        ]
        /// An image that is gone is an exit code, as `docker run` has it.
        MissingImageIs125 [a_missing_image_is_an_outcome a_failed_pull_is_an_outcome]
        /// `resolve` of a name that nobody knows succeeds.
        UnknownNamesResolve [
            an_unknown_name_is_not_found an_image_is_pulled_and_run registries_fail_in_their_own_ways
            undeclared_image_store_finds_nothing undeclared_pull_asks_no_registry
        ]
        /// `resolve` of a name that nobody knows says that the registry cannot be reached.
        UnknownNamesAreUnreachable [
            an_unknown_name_is_not_found an_image_is_pulled_and_run registries_fail_in_their_own_ways
            undeclared_image_store_finds_nothing undeclared_pull_asks_no_registry
        ]
        /// `prefetch` is refused.
        PrefetchIsDenied [
            exactly_the_resolved_image_is_told a_prefetched_image_is_there registries_fail_in_their_own_ways
        ]
        /// `prefetch` does nothing.
        PrefetchDoesNothing [a_prefetched_image_is_there registries_fail_in_their_own_ways]
        /// `resolve` fetches the image.
        ResolveFetches [an_image_is_pulled_and_run]
        /// Whatever is wrong with a name or registry is one kind of error.
        RegistriesFailInOneWay [
            registries_fail_in_their_own_ways an_unknown_name_is_not_found an_engine_that_is_away_gives_no_verdict
            an_image_is_pulled_and_run delayed_calls_can_be_repeated failed_calls_can_be_repeated
            undeclared_image_store_finds_nothing undeclared_pull_asks_no_registry
        ]
        /// While one image is being fetched no other run starts.
        PullsHoldUpOthers [a_slow_pull_delays_no_other_run]
        /// An image that is being fetched for one run cannot be had for another.
        FetchesGetInEachOthersWay [one_image_is_fetched_for_many]
        /// `cancel` while the image is being fetched is forgotten.
        PullsAreNotCancelled [a_pull_can_be_cancelled]
        /// Credentials that the runtime has are not used.
        CredentialsAreNotUsed [a_private_image_is_pulled]
    }
    "What the program is told" {
        /// Arguments are joined, and split at blanks.
        ArgumentsAreSplit [arguments_are_literal any_name_is_collected]
        /// Empty arguments are dropped.
        EmptyArgumentsAreDropped [arguments_are_literal]
        /// Arguments are cut at 64 KiB.
        LongArgumentsAreCut [arguments_are_literal]
        /// Variables in arguments are expanded.
        ArgumentsAreExpanded [arguments_are_literal]
        /// Variables in the environment are expanded.
        EnvironmentIsExpanded [environment_is_literal]
        /// The environment travels as a file of lines.
        EnvironmentEndsAtItsFirstLine [environment_is_literal]
        /// Quotes around a variable's value are stripped.
        QuotesAreStripped [environment_is_literal]
        /// A secret variable reaches the program as asterisks.
        SecretsAreMasked [secrets_reach_the_program_alone]
        /// `Debug` of the runtime shows the specs that it was given.
        SecretInDebug [secrets_reach_the_program_alone secret_files_reach_the_program_alone]
        /// The working directory is always the image's.
        WorkdirIsIgnored [
            the_working_directory_applies the_working_directory_is_literal a_scratch_folder_can_be_worked_in
        ]
        /// Standard input stays open, and nothing comes.
        StandardInputStaysOpen [standard_input_is_at_its_end]
    }
    "Files in" {
        /// A given file that is empty gets a line end.
        EmptyInputsGetALineEnd [inputs_are_byte_exact]
        /// The last byte of a secret file is taken for a line end.
        SecretFilesAreTrimmed [inputs_are_byte_exact secret_files_reach_the_program_alone]
        /// Streamed files end at 1 MiB.
        StreamsEndAtAMebibyte [inputs_are_byte_exact a_large_input_is_byte_exact]
        /// Given files can be changed by the run.
        InputsAreWritable [inputs_cannot_be_changed]
        /// A stream that is shorter or longer than it said is filled up or cut.
        WrongStreamIsFilledUp [a_wrong_stream_is_refused]
        /// A wrong stream is refused, and the run started all the same.
        WrongStreamStartsTheRun [a_wrong_stream_is_refused]
        /// A stream that breaks half-way is filled up.
        BrokenStreamIsFilledUp [a_broken_stream_starts_nothing]
        /// The error of a stream that broke says that the program may have started.
        BrokenStreamMayHaveStarted [a_broken_stream_starts_nothing]
        /// A scratch folder cannot be written.
        ScratchIsReadOnly [scratch_is_writable a_scratch_limit_binds a_scratch_folder_can_be_worked_in]
        /// Files of the machine are mounted for writing always.
        HostPathsAreWritable [host_paths_are_mounted]
        /// Files of the machine are mounted for writing never.
        HostPathsAreReadOnly [host_paths_are_mounted]
        /// A path that the machine does not have becomes an empty folder, as `docker run -v` has it.
        MissingHostPathsAreMade [a_missing_host_path_is_an_outcome]
        /// Volumes are mounted for writing always.
        VolumesAreWritable [volumes_are_mounted a_part_of_a_volume_is_mounted]
        /// With a part of a volume comes all of it.
        PartsAreWhole [a_part_of_a_volume_is_mounted a_missing_part_is_an_outcome]
        /// A part that a volume does not have is made.
        MissingPartsAreMade [a_missing_part_is_an_outcome]
        /// A volume that the engine does not have is made, as `docker run -v` has it.
        MissingVolumesAreMade [a_missing_volume_is_an_outcome]
        /// What one run has written another can read.
        FilesAreShared [other_runs_files_are_out_of_reach]
    }
    "Files out" {
        /// Outputs end at 1 MiB.
        OutputsEndAtAMebibyte [outputs_are_byte_exact]
        /// Outputs lose blanks and line ends at their end.
        OutputsAreText [outputs_are_byte_exact a_cut_output_is_not_taken_for_whole odd_pieces_change_nothing]
        /// What is no whole block of an output is lost.
        LastPieceIsLost [
            outputs_are_byte_exact an_output_cannot_be_replaced an_output_can_be_collected_again
            odd_pieces_change_nothing reading_can_be_dropped_anywhere
        ]
        /// An output is given once.
        OutputsAreGivenOnce [
            an_output_can_be_collected_again reading_can_be_dropped_anywhere a_cut_output_is_not_taken_for_whole
        ]
        /// An output whose connection broke looks whole.
        CutOutputLooksWhole [a_cut_output_is_not_taken_for_whole]
        /// The output's file is not made beforehand.
        OutputsAreNotMade [an_unwritten_output_is_empty an_output_cannot_be_replaced]
        /// The output's file is in a folder that the run can write.
        OutputsCanBeReplaced [an_output_cannot_be_replaced]
        /// Outputs of any size are given out.
        OutputLimitIsIgnored [an_output_has_a_limit a_folder_has_a_limit an_output_of_holes_has_a_limit]
        /// Folders of any size are given out.
        FolderLimitIsIgnored [a_folder_has_a_limit]
        /// Before the end `collect` gives what there is.
        OutputsAreGivenEarly [outputs_wait_for_the_end]
        /// An output that was not declared is empty.
        UndeclaredOutputsAreEmpty [outputs_wait_for_the_end an_unknown_run_is_not_found]
        /// Links in a folder are followed.
        LinksAreFollowed [a_folder_is_collected a_hostile_folder_gives_only_its_files]
        /// What was mounted below a folder is collected with it.
        FoldersTakeWhatIsMounted [a_folder_is_collected]
        /// Empty files of a folder are left out.
        EmptyFilesAreNotPacked [a_folder_is_collected]
        /// Folders below a folder are left out.
        SubfoldersAreNotPacked [a_folder_is_collected a_folder_can_begin_with_files]
        /// Line ends in the names of files are replaced.
        NamesAreCleaned [any_name_is_collected]
        /// An empty folder is told as one that never came to be.
        EmptyFoldersAreNotThere [a_folder_may_be_empty other_runs_files_are_out_of_reach]
        /// What a folder begins with cannot be changed.
        FoldersBeginReadOnly [a_folder_can_begin_with_files]
    }
    "Limits and surroundings" {
        /// `resources.memory` is declared, and the limit ignored.
        MemoryLimitIsIgnored [out_of_memory_is_told]
        /// `resources.pids` is declared, and the limit ignored.
        ProcessLimitIsIgnored [processes_are_limited]
        /// `resources.scratch` is declared, and the limit ignored.
        TemporaryFolderIsUnlimited [the_temporary_folder_is_limited]
        /// `mounts.scratch_limit` is declared, and the limit ignored.
        ScratchIsUnlimited [a_scratch_limit_binds]
        /// `trust` is declared, and makes no difference.
        TrustIsIgnored [trust_is_what_opens_the_root]
        /// `supplementary_groups` is declared, and the program has none.
        GroupsAreIgnored [further_groups_are_given]
        /// Who gets further groups gets root's too.
        GroupsIncludeRoots [further_groups_are_given]
        /// `resources.cpu` is declared, and the limit ignored.
        ProcessorLimitIsIgnored [a_processor_limit_binds]
        /// `resources.gpu` is declared, and ignored.
        GraphicsProcessorsAreIgnored [graphics_processors_are_given]
        /// `usage` is declared, and processor time not told.
        ProcessorTimeIsNotTold [usage_is_told]
        /// `usage` is declared, and peak memory not told.
        MemoryIsNotTold [usage_is_told]
    }
    "How runs end" {
        /// Exit codes have seven bits.
        ExitCodesHaveSevenBits [exit_codes_are_exact]
        /// A program that exits with 128+n is taken for one that a signal ended.
        CodesAbove128AreSignals [exit_codes_are_exact]
        /// A program that a signal ended is taken for one that exits with 128+n.
        SignalsAreCodes [a_signal_is_told_from_a_code]
        /// Every signal is taken for SIGKILL.
        SignalsAreKills [a_signal_is_told_from_a_code]
        /// A run that took too much memory is told as killed.
        OutOfMemoryIsAKill [out_of_memory_is_told]
        /// A missing command is exit code 127, as a shell has it.
        MissingCommandIs127 [a_missing_command_is_told_from_127]
        /// Whatever keeps a program from starting is told as one.
        StartFailuresAreNotToldApart [
            a_missing_command_is_told_from_127 a_missing_image_is_an_outcome a_missing_host_path_is_an_outcome
            a_failed_pull_is_an_outcome a_missing_volume_is_an_outcome a_missing_part_is_an_outcome
        ]
        /// No status has the time of its start and end.
        TimesAreNotTold [a_restart_reads_finished_runs an_end_has_its_times]
    }
    "Cancel, grace and deadline" {
        /// `cancel` is accepted and ends nothing.
        CancelDoesNothing [] + CANCELS
        /// `cancel` of a run that has not started is forgotten.
        CancelBeforeTheStartIsLost [
            a_run_is_cancelled_before_it_starts cleanup_shows_no_other_end a_pull_can_be_cancelled
            a_slow_engine_changes_nothing
        ]
        /// `cancel` does not ask the program to end, and kills it after the grace.
        CancelOnlyKills [a_running_run_is_cancelled a_deadline_changes_no_cancel]
        /// A second `cancel` changes nothing.
        SecondCancelIsIgnored [a_shorter_grace_shortens delayed_calls_can_be_repeated failed_calls_can_be_repeated]
        /// A second `cancel` is a conflict.
        SecondCancelIsAConflict [
            cancelling_twice_is_no_error a_longer_grace_does_not_lengthen a_shorter_grace_shortens
            cancel_can_be_dropped_anywhere cancelling_the_finished_does_nothing delayed_calls_can_be_repeated
            failed_calls_can_be_repeated
        ]
        /// After a call of `cancel` that was dropped, no other has an effect.
        DroppedCancelIsForgotten [cancel_can_be_dropped_anywhere]
        /// A grace of zero is taken for none given.
        ZeroGraceIsTheDefault [a_grace_of_zero_kills a_shorter_grace_shortens]
        /// A longer grace puts the kill off.
        LastGraceCounts [a_longer_grace_does_not_lengthen]
        /// `cancel` of a run that is over is answered as if it had been asked to end.
        FinishedRunsAreAskedToEnd [
            cancelling_the_finished_does_nothing an_engine_that_is_away_gives_no_verdict
            cancelling_twice_is_no_error
        ]
        /// `cancel` of a run that is over makes it Cancelled.
        CancelChangesTheEnd [
            cancelling_the_finished_does_nothing a_start_can_be_cancelled_at_any_moment
            an_engine_that_is_away_gives_no_verdict
        ]
        /// A cancelled run is told as exit code 143.
        CancelledIsACode [a_start_can_be_cancelled_at_any_moment] + CANCELS
        /// Only the process that cancelled a run knows that it was cancelled.
        CancelIsForgotten [
            a_restart_remembers_the_cancel a_deadline_changes_no_cancel a_start_can_be_cancelled_at_any_moment
        ]
        /// `grace` is declared, and every run killed at once.
        GraceIsIgnored [who_ignores_the_request_is_killed]
        /// The grace lasts ten times as long.
        GraceIsTenfold [who_ignores_the_request_is_killed a_longer_grace_does_not_lengthen]
        /// `deadline` is declared, and ignored.
        DeadlineIsIgnored [
            the_deadline_ends_a_run the_deadline_holds_alone the_deadline_kills_the_stubborn
            a_past_deadline_starts_nothing the_deadline_ends_a_pull
        ]
        /// The deadline ends a run long before it has passed.
        DeadlineIsAtOnce [the_deadline_ends_a_run a_deadline_changes_no_cancel who_ends_in_time_has_met_it]
        /// A deadline that has passed already is forgotten.
        PastDeadlineIsForgotten [a_past_deadline_starts_nothing]
        /// A run that ended in time is told as late once its deadline has passed.
        DeadlineChangesTheEnd [who_ends_in_time_has_met_it]
        /// The deadline is kept by the process that started the run.
        DeadlineNeedsTheCaller [the_deadline_holds_alone a_deadline_changes_no_cancel]
        /// A run past its deadline is told as cancelled.
        DeadlineIsCalledCancel [
            the_deadline_ends_a_run the_deadline_holds_alone the_deadline_kills_the_stubborn
            a_past_deadline_starts_nothing the_deadline_ends_a_pull
        ]
        /// A run past its deadline is asked to end, and never made to.
        DeadlineOnlyAsks [the_deadline_kills_the_stubborn]
    }
    "The record" {
        /// A value sees only runs that it started itself.
        OnlyOwnRunsAreSeen [
            a_cut_start_is_abandoned a_cut_start_can_be_cleaned_up one_image_is_fetched_for_many
        ] + RESTARTS
        /// How a run ended only the process knows that started it.
        EndsAreRememberedByTheProcess [one_image_is_fetched_for_many] + RESTARTS
        /// Annotations are cut at 4,096 characters.
        AnnotationsAreCut [every_run_is_listed_whole annotations_may_be_large]
        /// Line ends in annotations become blanks.
        AnnotationsAreOneLine [every_run_is_listed_whole annotations_may_be_large]
        /// Empty annotations are dropped.
        EmptyAnnotationsAreDropped [every_run_is_listed_whole]
        /// Annotations are kept by the process that started the run.
        AnnotationsStayInTheProcess [every_run_is_listed_whole annotations_may_be_large]
        /// `list` gives its first 20 runs.
        ListEndsAfterAPage [many_at_once]
        /// `list` gives no finished run while another runs.
        ListForgetsTheFinished [
            every_run_is_listed_whole a_watch_begins_with_everything a_slow_pull_delays_no_other_run
            it_sees_only_its_processes without_grants_nothing_arrives
        ]
        /// `list` gives runs of every owner.
        ListOfEveryOwner [owners_do_not_meet one_name_may_begin_another]
        /// `list` gives runs of owners whose names begin with this one's.
        OwnersMatchByPrefix [one_name_may_begin_another]
        /// `status` finds runs of every owner.
        StatusOfAnyOwner [owners_do_not_meet one_name_may_begin_another]
        /// An unknown run is told as an engine that does not answer.
        UnknownIsUnavailable [
            an_unknown_run_is_not_found owners_do_not_meet cleanup_of_a_live_run_needs_force
            cleanup_shows_no_other_end a_cut_start_can_be_cleaned_up a_pulling_run_can_be_cleaned_up
            a_stuck_part_does_not_stop_cleanup a_taken_name_conflicts cleanup_can_be_dropped_anywhere
            concurrent_cleanups_all_succeed look_alikes_are_spared one_name_may_begin_another
            run_dropped_anywhere_leaves_nothing
        ]
        /// No error of `status` says that repeating the call can help.
        NoCallCanBeRepeated [
            failed_calls_can_be_repeated delayed_calls_can_be_repeated an_engine_that_is_away_gives_no_verdict
        ]
        /// A call of `status` that is dropped keeps the line to the engine for ever.
        DroppedLooksHoldTheLine [looks_can_be_dropped_anywhere]
        /// `cancel` of an unknown run succeeds.
        UnknownIsCancelled [an_unknown_run_is_not_found cancelling_the_removed_is_not_found]
        /// The log of an unknown run is empty.
        UnknownLogsAreEmpty [an_unknown_run_is_not_found a_log_ends_with_cleanup]
        /// Two processes can hold the owner's lease.
        LeasesAreShared [a_lease_is_exclusive acquire_can_be_dropped_anywhere]
        /// A lease outlives its holder.
        LeasesAreNotGivenBack [a_lease_is_exclusive acquire_can_be_dropped_anywhere]
        /// A call of `acquire` that is dropped keeps the lease.
        DroppedAcquireHoldsTheLease [acquire_can_be_dropped_anywhere]
        /// All owners share one lease.
        OneLeaseForAllOwners [a_lease_is_exclusive]
        /// A lease that another holds is told as an engine that does not answer.
        TakenLeaseIsUnavailable [a_lease_is_exclusive acquire_can_be_dropped_anywhere]
    }
    "Cleaning up" {
        /// `cleanup` removes a run that has not finished, forced or not.
        CleanupNeedsNoForce [cleanup_of_a_live_run_needs_force]
        /// `cleanup` refuses an unfinished run as a conflict.
        RefusalToCleanUpIsAConflict [cleanup_of_a_live_run_needs_force]
        /// `cleanup` fails, and says that the run is removed.
        FailedCleanupIsCalledRemoved [
            a_stuck_part_does_not_stop_cleanup an_engine_that_is_away_gives_no_verdict delayed_calls_can_be_repeated
            failed_calls_can_be_repeated
        ]
        /// A call of `cleanup` keeps others out, also when it was dropped.
        CleanupsKeepOthersOut [concurrent_cleanups_all_succeed cleanup_can_be_dropped_anywhere]
        /// `cleanup` removes what is nobody's, if it has the name.
        StrangersAreRemoved [a_taken_name_conflicts]
        /// `cleanup` removes what is nobody's, if its name begins so.
        LookAlikesAreRemoved [look_alikes_are_spared]
        /// `cleanup` of what is not there fails.
        NothingToCleanUpIsAnError [
            cleanup_twice_is_absent owners_do_not_meet a_taken_name_conflicts cleanup_can_be_dropped_anywhere
            concurrent_cleanups_all_succeed run_dropped_anywhere_leaves_nothing
        ]
        /// `cleanup` of what is not there says that it was.
        NothingIsCalledRemoved [cleanup_twice_is_absent owners_do_not_meet a_taken_name_conflicts]
        /// While `cleanup` is at work, the run is told as lost.
        CleanupShowsAnotherEnd [cleanup_shows_no_other_end cleanup_can_be_dropped_anywhere]
        /// `cleanup` of a cancelled run leaves the note of the cancel.
        MarksOfACancelStay [a_start_can_be_cancelled_at_any_moment] + CANCELS
        /// Forced `cleanup` of a live run leaves its files.
        KilledRunsLeaveTheirFiles [
            cleanup_of_a_live_run_needs_force every_run_is_listed_whole a_watch_begins_with_everything
            a_log_ends_with_cleanup concurrent_cleanups_all_succeed it_sees_only_its_processes
            watching_costs_no_calls_per_run without_grants_nothing_arrives
        ]
        /// `cleanup` of an abandoned run leaves its files.
        AbandonedRunsLeaveTheirFiles [a_cut_start_can_be_cleaned_up]
        /// `cleanup` waits for a starter that is gone.
        CleanupWaitsForTheStarter [a_cut_start_can_be_cleaned_up]
        /// `cleanup` waits for an image that is being fetched.
        CleanupWaitsForThePull [a_pulling_run_can_be_cleaned_up a_slow_pull_delays_no_other_run]
        /// An id cannot be used again.
        IdsAreUsedOnce [an_id_can_be_used_again a_missing_volume_is_an_outcome a_missing_part_is_an_outcome two_runs_may_end_in_one_tick]
        /// A run under an id that was used before shows the earlier one's end.
        OldEndsComeBack [an_id_can_be_used_again a_missing_volume_is_an_outcome a_missing_part_is_an_outcome two_runs_may_end_in_one_tick]
        /// `cleanup` removes a run of another owner.
        CleanupOfAnyOwner [owners_do_not_meet]
        /// `cleanup` removes every run whose id begins so.
        CleanupByPrefix [similar_names_do_not_meet]
    }
    "Logs" {
        /// Of a log its first 512 KiB are given.
        LogsAreRotated [logs_are_byte_exact binary_logs_are_byte_exact both_streams_are_told_apart]
        /// Lines are split at 16 KiB.
        LongLinesAreSplit [logs_are_byte_exact arguments_are_literal environment_is_literal]
        /// What is printed on standard error is lost.
        StandardErrorIsLost [a_log_holds_both_streams both_streams_are_told_apart odd_pieces_change_nothing]
        /// What was read of the log of a running program is not given again.
        LogsAreReadOnce [a_log_can_be_read_while_it_is_written]
        /// `logs.binary` is declared, and logs are text.
        BinaryLogsAreText [binary_logs_are_byte_exact]
        /// A log whose connection broke looks ended.
        CutLogLooksEnded [
            a_cut_log_can_be_read_on an_engine_that_is_away_gives_no_verdict delayed_calls_can_be_repeated
            failed_calls_can_be_repeated
        ]
        /// `logs.split` is declared, and the streams are one.
        StreamsAreMerged [both_streams_are_told_apart odd_pieces_change_nothing]
        /// Standard output and standard error are taken for each other.
        StreamsAreSwapped [both_streams_are_told_apart odd_pieces_change_nothing]
        /// `logs.since` is declared, and ignored.
        SinceIsIgnored [a_position_is_a_place a_cut_log_can_be_read_on undeclared_logs_since_is_unsupported]
        /// Reading on from a position loses a byte.
        SinceIsOffByOne [a_position_is_a_place a_cut_log_can_be_read_on]
        /// A position is understood only by the process that gave it.
        PositionsAreOfOneProcess [a_position_is_a_place]
        /// The limit of a log is ignored.
        LogLimitIsIgnored [a_log_can_be_limited]
        /// The limit of a log is rounded up to whole pages.
        LogLimitIsRoundedUp [a_log_can_be_limited]
        /// A followed log ends when nothing comes for half a second.
        FollowingEndsInSilence [following_ends_with_the_run]
        /// A followed log does not end with the run.
        FollowingNeverEnds [following_ends_with_the_run a_cut_log_can_be_read_on a_log_ends_with_cleanup]
        /// A program waits for whoever follows its log.
        ReaderHoldsTheProgram [a_flood_ends_like_any_run a_stalled_reader_delays_nobody]
    }
    "Watching" {
        /// Something comes before the first snapshot.
        WatchBeginsWithANotice [
            a_watch_begins_with_everything a_run_may_be_over_before_the_first_look
        ]
        /// While a run goes on, snapshots have no other.
        SnapshotForgetsTheFinished [
            a_watch_begins_with_everything an_ended_event_stream_is_no_verdict
            an_engine_that_is_away_gives_no_verdict
        ]
        /// Of two runs that end at the same time one end is lost.
        OneOfTwoEndsIsLost [
            every_end_is_seen many_at_once phases_never_go_back a_slow_engine_changes_nothing
            a_slow_watcher_delays_nobody cancel_can_be_dropped_anywhere cleanup_can_be_dropped_anywhere
            connections_name_their_run run_can_be_dropped_anywhere two_runs_may_end_in_one_tick exit_codes_are_exact
            logs_are_byte_exact one_image_is_fetched_for_many
        ]
        /// After Running comes an older Pending.
        PhasesGoBack [phases_never_go_back]
        /// A run that is cleaned up is not told.
        RemovalsAreNotTold [a_removed_run_is_told a_slow_watcher_delays_nobody]
        /// The watch ends when its connection breaks.
        WatchEndsWithItsConnection [
            a_broken_connection_is_no_verdict a_restarted_engine_keeps_what_was
            an_engine_that_is_away_gives_no_verdict
        ]
        /// A broken connection is told as an error for good.
        BreakIsFinal [
            a_broken_connection_is_no_verdict a_restarted_engine_keeps_what_was
            an_engine_that_is_away_gives_no_verdict
        ]
        /// After a broken connection no snapshot comes.
        NoSnapshotAfterABreak [
            a_broken_connection_is_no_verdict a_restarted_engine_keeps_what_was
            an_engine_that_is_away_gives_no_verdict
        ]
        /// When the engine ends its stream of events, no more is told.
        EndedStreamStaysEnded [an_ended_event_stream_is_no_verdict a_broken_connection_is_no_verdict]
        /// A watch asks for each run again and again.
        WatchAsksForEachRun [watching_costs_no_calls_per_run]
        /// The snapshot after a broken connection is empty.
        RunsAreGoneAfterABreak [a_broken_connection_is_no_verdict a_restarted_engine_keeps_what_was]
        /// A broken connection is taken for the end of the runs.
        BrokenConnectionEndsRuns [a_broken_connection_is_no_verdict an_engine_that_is_away_gives_no_verdict]
        /// A watch that is dropped unread cancels runs.
        DroppedWatchEndsRuns [a_dropped_watch_leaves_runs_alone]
    }
    "Granted connections" {
        /// `egress` is declared, and no grant given.
        GrantsAreNotGiven [
            a_granted_connection_arrives hosts_may_share_a_port connections_wait_for_a_reader
            connections_reach_a_restarted_process what_is_not_granted_is_refused much_goes_through
            connections_name_their_run granted_names_are_loopback
        ]
        /// Any port of a granted host can be reached.
        EveryPortIsGranted [what_is_not_granted_is_refused]
        /// Any host can be reached.
        EveryHostIsGranted [what_is_not_granted_is_refused without_grants_nothing_arrives]
        /// Connections are told as another run's.
        ConnectionsAreOfAnotherRun [connections_name_their_run]
        /// Grants with the same port are taken for each other.
        GrantsAreToldByPort [hosts_may_share_a_port]
        /// Grants with the same host are taken for each other.
        GrantsAreToldByHost [hosts_may_share_a_port]
        /// While nobody reads connections, they are refused.
        ConnectionsNeedAReader [connections_wait_for_a_reader]
        /// Connections arrive only at the process that started the run.
        ConnectionsOfOwnRunsOnly [connections_reach_a_restarted_process]
        /// A connection loses a byte after 1 MiB.
        BytesAreLost [much_goes_through]
        /// What the caller sends does not reach the run.
        AnswersAreLost [
            a_granted_connection_arrives connections_wait_for_a_reader connections_reach_a_restarted_process
            hosts_may_share_a_port much_goes_through
        ]
        /// That the run has sent all is not told.
        HalfCloseIsNotTold [much_goes_through]
    }
    "The isolation floor" {
        /// The program's user is root.
        RunsAsRoot [it_is_not_root]
        /// The program's group is root's.
        RunsInRootsGroup [it_is_not_root]
        /// One of the program's further groups is root's.
        RootIsAGroup [it_is_not_root]
        /// The program has capabilities.
        CapabilitiesAreEffective [it_has_no_capabilities]
        /// The program can get capabilities.
        CapabilitiesAreBounded [it_has_no_capabilities]
        /// `no_new_privs` is not set.
        PrivilegesCanBeGained [it_gains_no_privileges]
        /// There is no system call filter.
        SystemCallsAreNotFiltered [its_system_calls_are_filtered]
        /// Every image may write the root file system.
        EveryImageIsTrusted [its_root_is_read_only trust_is_what_opens_the_root]
        /// `HOME` cannot be written.
        HomeIsReadOnly [its_root_is_read_only]
        /// Addresses can be reached.
        AddressesCanBeReached [it_has_no_network without_grants_nothing_arrives]
        /// Names are resolved.
        NamesAreResolved [it_has_no_network granted_names_are_loopback without_grants_nothing_arrives]
        /// There is an interface beside loopback.
        ThereIsAnotherInterface [it_sees_only_loopback]
        /// There is a route.
        ThereIsARoute [it_sees_only_loopback]
        /// An interface has an address of the network.
        ThereIsAnAddress [it_sees_only_loopback]
        /// The program sees processes that are not its own.
        ProcessesAreSeen [it_sees_only_its_processes]
        /// The engine's socket is mounted.
        TheHostIsMounted [it_has_only_the_mounts_asked_for]
        /// User and group can be changed.
        UserCanBeChanged [powers_are_refused]
        /// File systems can be mounted.
        FileSystemsCanBeMounted [powers_are_refused]
        /// Device files can be made.
        DevicesCanBeMade [powers_are_refused]
        /// The root can be changed.
        RootCanBeChanged [powers_are_refused]
        /// The host's name can be changed.
        HostNameCanBeChanged [powers_are_refused]
        /// Raw sockets can be opened.
        RawSocketsCanBeOpened [powers_are_refused]
        /// An examination finds a hole.
        ExaminationFindsAHole [an_examination_holds]
        /// An examination looks at nothing.
        ExaminationSeesNothing [an_examination_holds]
        /// An examination leaves its run behind.
        ExaminationLeavesARun [an_examination_holds]
    }
}
