"""Handlers before the first job and after the last."""

from snakemake.logging import logger


def in_words(*steps):
    """Takes the steps; what is refused, by the program or by the disk, ends the run with a line and no traceback."""
    for step in steps:
        try:
            step()
        except (InputError, OSError) as error:
            text = refusal_of_disk(error) or str(error)
            journal.write(Path(RESULTS), "refused", anew=True, text=text, budget=getattr(error, "meant", None))
            raise WorkflowError(text)


def lock_results():
    """One run at a time works on these results; `dpar run` has locked those that it names, and said what changed."""
    if os.environ.get(LOCKED) != os.path.realpath(RESULTS):
        from dpar.data.changes import say_changes  # takes as long as the rest, and every job reads this file

        lock = run_lock(Path(RESULTS))
        LOCKS.append(lock)  # held until this process ends
        lock.__enter__()
        say_changes(Path(RESULTS))


def planned_trainings():
    """The trainings that this run does, each with Snakemake's reason."""
    jobs = [] if workflow.touch else workflow.dag.needrun_jobs()
    return [(job, workflow.dag.reason(job)) for job in jobs if job.rule.name in TRAININGS]


def begin_forced_trainings():
    """Sets the states of finished trainings aside that `--forcerun` and its kin ask for: they would be found complete.

    Outputs go with them, which Snakemake would remove later: where one is missing a forced training was interrupted,
    and the same command goes on with it.
    """
    forced = {}
    for job, reason in planned_trainings():
        if reason.forced:
            forced.setdefault(str(job.params.state), []).extend(map(str, job.output))
    for state, outputs in forced.items():
        if os.path.exists(state) and all(map(os.path.exists, outputs)):
            set_aside_by_force(Path(state), outputs)


def set_aside_by_force(state, outputs):
    from dpar.train.checkpoint import training_lock, set_aside  # takes seconds to import

    with training_lock(state):
        set_aside(state, f"{os.path.dirname(outputs[0])} is finished, and forced")
        for path in outputs:
            os.unlink(path)


def check_experiment():
    """Before the first job: what would stop a later one, as far as that is known now."""
    jobs = [] if workflow.touch else workflow.dag.needrun_jobs()
    to_make = {str(path) for job in jobs for path in job.output}
    here = "DPAR_SLURM_RUN" not in os.environ
    unknown = checks.refuse(EXPERIMENT, to_make=to_make, places=PLACES, here=here)
    for line in unknown:
        print(f"not checked: {line}", file=sys.stderr)


def needed_jobs():
    """The jobs that this run does, but for those that only gather others."""
    return [] if workflow.touch else [job for job in workflow.dag.needrun_jobs() if job.output]


def planned_jobs():
    """The same as `dpar.workflow.announcement` has them."""
    return [
        announcement.Planned(
            job.rule.name, "/".join(job.wildcards_dict.values()), bool(workflow.dag.reason(job).params_changed)
        )
        for job in needed_jobs()
    ]


def announce():
    """Before the first job: what this run does, what it costs, and why finished work is done again."""
    jobs, here = needed_jobs(), "DPAR_SLURM_RUN" not in os.environ
    costly = [(job.rule.name, job.wildcards_dict) for job in jobs if job.rule.name in (*TRAININGS, "sample_images")]
    bill = None
    if costly and (images := checks.images_of(EXPERIMENT, Path())):
        bill = announcement.bill_of(
            EXPERIMENT, [(job.rule.name, job.wildcards_dict) for job in jobs], images, here=here
        )
    for line in announcement.announced(EXPERIMENT, planned_jobs(), bill, changed_settings()):
        print(line, file=sys.stderr)
    if bill is not None:
        BILLS.append(bill)
        # `dpar run`, which has locked the results, asks by itself
        ask = LOCKED not in os.environ and announcement.somebody_asks()
        announcement.check_budget(bill, announcement.budget_given(), *([announcement.approved] if ask else []))


def changed_settings():
    """Settings that are not those of the run before, as `dpar.workflow.announcement` has them."""
    path = Path(RESULTS, "experiment.json")
    before = read_json(path) if path.is_file() else None
    return announcement.changed_settings(before and unmarked(before), EXPERIMENT.model_dump(mode="json"))


def say_plan():
    """In a dry run, before its jobs: changed settings that one of them reads, the jobs by kind, trainings by name."""
    if workflow.dryrun:
        try:
            changes = changed_settings()
        except InputError as error:
            raise WorkflowError(str(error))
        for key, change in announcement.read_by({job.rule.name for job in needed_jobs()}, changes).items():
            print(f"changed since the last run: {announcement.in_words(key, change)}", file=sys.stderr)
        for line in announcement.jobs_in_words(EXPERIMENT, planned_jobs()):
            print(line, file=sys.stderr)


logger.addHandler(journal.FirstEvent("run_info", say_plan))


def begin_journal():
    """Writes what Snakemake begins and finishes, for `dpar status` and the view of `dpar run`."""
    counts = {}
    for job in needed_jobs():
        counts[job.rule.name] = counts.get(job.rule.name, 0) + 1
    journal.begin(Path(RESULTS), counts, BILLS[-1].seconds if BILLS else None)
    logger.addHandler(journal.JournalHandler(Path(RESULTS)))


def guard_trainings():
    """Says which finished trainings this run would do again, and stops unless that is meant."""
    again = {}
    for job, reason in planned_trainings():
        if all(map(os.path.exists, job.output)) and not (reason.forced or reason.incomplete_output):
            again[os.path.dirname(job.output[0])] = ", ".join(reason.get_names())
    if again and RETRAIN not in os.environ and not EXPERIMENT.is_smoke:
        raise InputError(retraining(again, meant=False))
    if again:
        print(retraining(again, meant=True), file=sys.stderr)


def check_slurm():
    """Before the first job: that Slurm is there, has room for every job, and works on no job of a run before.

    The profile names the run in DPAR_SLURM_RUN.
    """
    if run := os.environ.get("DPAR_SLURM_RUN"):
        asked = [(job.rule.name, job.resources) for job in workflow.dag.needrun_jobs() if not job.is_local]
        longest = longest_jobs()
        check_partitions(((name, r.get("slurm_partition"), r.get("runtime")) for name, r in asked), longest)
        claim_jobs(Path(RESULTS, "tracking", "slurm_run"), run)


def tracking_command(*arguments):
    return [sys.executable, "-m", "dpar.cli", "track", *arguments, "--results", RESULTS]


def write_experiment():
    """The experiment, checked and with every default, for the stages to read.

    It is no input of any rule: what makes a stage out of date is its recipe, which holds the settings that it reads.
    Jobs refuse another that takes its place while they run.
    """
    settings = EXPERIMENT.model_dump(mode="json")
    write_json(f"{RESULTS}/experiment.json", settings)
    os.environ[RUNNING] = running(settings, RESULTS)


def start_tracking():
    """Carries spools into MLflow every few seconds while the graph runs, so that curves can be watched.

    An address with a typo ends the run here; one that does not answer is said once, and its records wait on disk.
    """
    if workflow.touch:  # no stage runs
        return
    store = find_store(RESULTS)
    if not store.embedded and subprocess.call(tracking_command("sync")) != 0:
        print(f"tracking: the run goes on without {store.describe()}; the records wait in {RESULTS}/tracking/spool")
    os.makedirs(f"{RESULTS}/tracking", exist_ok=True)
    with open(f"{RESULTS}/tracking/sync.log", "ab") as log:
        subprocess.Popen(
            tracking_command("sync", "--watch", "20", "--until-pid", str(os.getpid())),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def finish_tracking():
    """Carries the last spools into MLflow; a store that cannot be reached costs a line, never the results."""
    status = 0 if workflow.touch else subprocess.call(tracking_command("sync"))
    if status == 1:  # what cannot be shown at all has just been named
        print("tracking: MLflow lacks what is named above, and has everything else")
    elif status != 0:
        print(f"tracking: some records wait in {RESULTS}/tracking/spool; what is said above keeps them from MLflow")
