"""Every name an operator can meet on a dashboard or in a log, with its meaning and the next step.

Nothing else in the platform invents such a name: what is not listed here cannot be written.
Metric names follow the OpenTelemetry semantic conventions where these have one; Prometheus shows them with
`_` for `.`, a unit suffix, and `_total` for counters.
"""

from __future__ import annotations

from enum import StrEnum


class _Named(StrEnum):
    """A name with what it means and what to do about it."""

    meaning: str
    next_step: str

    def __new__(cls, value: str, meaning: str, next_step: str = "") -> _Named:  # noqa: PYI034 - Self is no valid return type for an enum's __new__ in mypy
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        member.next_step = next_step
        return member


class LogEvent(_Named):
    """What may be logged. An empty next step: nothing to do."""

    # Every service
    SERVICE_STARTING = "service.starting", "A service is being built from its settings."
    SERVICE_STARTED = "service.started", "A service takes work."
    SERVICE_STOPPING = "service.stopping", "A service takes no new work and finishes what is in hand."
    SERVICE_STOPPED = "service.stopped", "A service has ended."
    SERVICE_FAILED = (
        "service.failed",
        "A service could not start or ended by itself.",
        "`error` names the cause; run `isocenter doctor`.",
    )
    SETTINGS_LOADED = "settings.loaded", "The settings in force, secrets masked."
    WORKER_STARTED = "worker.started", "A process of a service of several processes was started."
    WORKER_LOST = (
        "worker.lost",
        "A process of a service of several processes ended or hung; another takes its place in `seconds`.",
        "Its last lines in the log say why; associations it had are aborted, what it acknowledged is kept.",
    )
    NOT_READY = (
        "service.not_ready",
        "A readiness check fails; load balancers turn away.",
        "`check` names it; GET /readyz shows what to do.",
    )
    READY_AGAIN = "service.ready_again", "Every readiness check passes again."
    DRAIN_TIMEOUT = (
        "service.drain_timeout",
        "Work in hand was cut off at the end of the drain period; it will be delivered again.",
        "Raise the drain setting if this comes back with each stop.",
    )
    TASK_FAILED = (
        "task.failed",
        "A background task ended with an error.",
        "`error` names the type; report it: this is a defect.",
    )
    LIBRARY_MESSAGE = (
        "library.message",
        "A library logged a warning. Only its template is shown: its values may quote patient data.",
        "`where` names file and line.",
    )
    LISTENING = "server.listening", "A port is open."

    # Bus
    BUS_CONNECTED = "bus.connected", "Producer and consumers are connected."
    BUS_UNAVAILABLE = (
        "bus.unavailable",
        "An event could not be made durable; what caused it is refused or retried.",
        "Check the broker, or the free space under the data directory.",
    )
    EVENT_RETRIED = (
        "event.retried",
        "A handler failed with a transient error; the event waits on the retry topic.",
        "Find the dependency that `error` names.",
    )
    EVENT_PARKED = (
        "event.parked",
        "An event waits because an earlier one of the same study is being retried.",
        "Nothing: it follows when the earlier one is through.",
    )
    EVENT_DEAD_LETTERED = (
        "event.dead_lettered",
        "An event will not be retried; its bytes are on the dead-letter topic.",
        "`isocenter dlq show`, mend the cause, then `isocenter dlq replay`.",
    )
    EVENT_UNKNOWN_TYPE = (
        "event.unknown_type",
        "An event of a type that this release does not know was acknowledged and counted.",
        "Upgrade, if its producer is newer.",
    )
    CONSUMER_STOPPED = (
        "consumer.stopped",
        "Too many dead letters in a row: the consumer stopped rather than discard everything.",
        "Mend the cause that `error` names, then restart the service.",
    )
    CONSUMER_RESTARTED = (
        "consumer.restarted",
        "A consumer lived and took no records, or had no partition or loop any more: it was started anew.",
        "Once after a fault of the broker: nothing. If it repeats, look at the broker; see `reason`.",
    )

    # Ingest
    ASSOCIATION_ACCEPTED = "association.accepted", "A DICOM association began."
    ASSOCIATION_REJECTED = (
        "association.rejected",
        "A DICOM association was refused.",
        "`reason` says why; compare the sender's called AE title and presentation contexts.",
    )
    TLS_HANDSHAKE_FAILED = (
        "tls.handshake_failed",
        "A connection to the TLS port ended before it could ask for an association.",
        "`reason` says why: compare the peer's certificate with `ISOCENTER_INGEST_TLS_CLIENT_CA_FILE`.",
    )
    ACCESS_RELOADED = "access.reloaded", "Certificates and peers were read again; `count` peers are listed."
    ACCESS_NOT_RELOADED = (
        "access.not_reloaded",
        "Certificates or peers have changed and cannot be used; those from before stay in force.",
        "`detail` names the file and the fault.",
    )
    ASSOCIATION_RELEASED = "association.released", "A DICOM association ended as agreed."
    ASSOCIATION_ABORTED = (
        "association.aborted",
        "A DICOM association broke off; what was acknowledged is kept.",
        "Look at the sender and the network if this comes back.",
    )
    INTAKE_SHUT = (
        "intake.shut",
        "Instances are refused before they are read: A700 over DIMSE, 503 over HTTP.",
        "`reason` says what is short, `detail` what to do. Senders are let in again by themselves.",
    )
    INTAKE_OPENED = "intake.opened", "What `reason` names is no longer short: instances are taken again."
    STOW_COMPLETED = "stow.completed", "A STOW-RS request was answered."
    PULL_STARTED = "pull.started", "An announced study is being fetched from its source."
    PULL_COMPLETED = "pull.completed", "Every instance of an announced study is durable."
    PULL_FAILED = (
        "pull.failed",
        "An announced study, or a part of it, could not be fetched; what came is kept.",
        "`reason` is a code of docs/event-contract.md; mend it, and `isocenter dlq replay` what gave up.",
    )
    INSTANCE_STORED = "instance.stored", "An instance is durable, and announced or certain to be."
    INSTANCE_REJECTED = (
        "instance.rejected",
        "An instance was refused; nothing of it is kept.",
        "`reason` is the code that the sender was given too.",
    )
    STORE_UNAVAILABLE = (
        "store.unavailable",
        "An object could not be written or read; the sender was asked to try again.",
        "`error` names the cause. KeysUnavailable: key table or key service; else the store: space, rights.",
    )

    ANNOUNCEMENT_DELAYED = (
        "announcement.delayed",
        "Objects are stored whose event is not known to be durable; it is tried again every few seconds.",
        "Check the bus; nothing is lost.",
    )
    ANNOUNCEMENT_MADE_UP = (
        "announcement.made_up",
        "Objects that an earlier failure or crash left unannounced are announced now.",
    )

    OBJECT_HEALED = (
        "object.healed",
        "A sender sent again what was damaged on disk; the damaged file is under `objects/damaged`.",
        "Look for a failing disk: nothing of ours changes an object.",
    )

    COMMITMENT_REQUESTED = (
        "commitment.requested",
        "A request for storage commitment is durable; with `again` it came before, and is answered anew.",
    )
    COMMITMENT_REFUSED = (
        "commitment.refused",
        "A request for storage commitment was refused; nothing of it is kept.",
        "no-address: list host and port of the sender in the peers file. unavailable: look at the index.",
    )
    COMMITMENT_CHECKED = (
        "commitment.checked",
        "The objects of a request for storage commitment were read back and compared.",
        "`detail` has 0110: an object is damaged or gone bad on the store; 0112: never stored, or deleted.",
    )
    COMMITMENT_REPORTED = "commitment.reported", "A requester was told which of its instances are committed."
    COMMITMENT_DELAYED = (
        "commitment.delayed",
        "A requester of storage commitment could not be told, or objects not be read; it is tried again.",
        "`error` names the cause: is the peer up, its address right, are we among its known AE titles?",
    )
    COMMITMENT_GIVEN_UP = (
        "commitment.given_up",
        "A requester of storage commitment was not told within the time set for it, and is called no more.",
        "Mend what `error` names, then let the requester ask again: nothing that is stored is affected.",
    )
    COMMITMENTS_PAUSED = (
        "commitment.paused",
        "Requests for storage commitment wait: the index cannot be used.",
        "Check the index; they are answered when it is back.",
    )

    # Indexer
    INSTANCES_INDEXED = "instances.indexed", "A batch of instances is in the index."
    INSTANCE_CONFLICTED = (
        "instance.conflicted",
        "A SOP Instance UID came again with other content; both are kept, the first stays current.",
        "Find out which system sends changed pixels or headers under an old UID.",
    )
    INSTANCE_UNREADABLE = (
        "instance.unreadable",
        "A stored object could not be described.",
        "`error` names the fault; the object itself is kept.",
    )
    PARSER_LOST = (
        "parser.lost",
        "Parsing the header of an instance was cut off and its child process replaced.",
        "`reason` says how (time, died, nonsense). The instance is indexed by its UIDs alone; whose is it?",
    )
    STUDY_SETTLED = "study.settled", "A study was judged settled; a new version is out."
    STUDY_REOPENED = "study.reopened", "Instances came after a study had settled; a new version will follow."
    SETTLE_LOST = (
        "study.settle_lost",
        "Instances came while a study was being settled; it waits for the next quiet period.",
    )
    SETTLE_FAILED = (
        "study.settle_failed",
        "A study could not be settled now and will be tried again.",
        "`error` names the cause.",
    )
    OUTBOX_DELAYED = (
        "outbox.delayed",
        "Events decided with a change of the index cannot be published now.",
        "Check the bus; nothing is lost.",
    )
    REINDEX_STARTED = "reindex.started", "The index is being rebuilt from objects."
    REINDEX_FINISHED = "reindex.finished", "The index was rebuilt from objects."

    # Gateway
    NO_SIGN_IN = (
        "gateway.no_sign_in",
        "This release has no sign-in: whoever reaches the port reads every study.",
        "Keep it on the loopback address, or put an authenticating proxy in front.",
    )
    REQUEST_SERVED = "request.served", "A request was answered."
    REQUEST_FAILED = (
        "request.failed",
        "A request ended in a server error.",
        "`error` names the cause; follow `trace_id`.",
    )
    RETRIEVE_ABORTED = "retrieve.aborted", "A client went away before its answer was complete."

    # Telemetry
    SPANS_DISCARDED = (
        "telemetry.spans_discarded",
        "The local span store was not readable and was begun anew.",
        "Nothing: recent traces are lost, studies are not.",
    )

    # GPU stager
    STAGER_READY = (
        "stager.ready",
        "The stager of this node takes requests; `detail` is the mode and why it is no faster one.",
        "`isocenter gpu probe` shows more.",
    )
    SERIES_STAGED = "series.staged", "Volumes of a series are ready on this node."
    SERIES_EVICTED = "series.evicted", "A staged series left this node, for `reason`."
    STAGING_FAILED = (
        "staging.failed",
        "A series could not be staged; it is tried again when it is asked for, after a while.",
        "`error` says why: the store, the disk, or pixels that nobody decodes.",
    )
    STAGED_DAMAGED = (
        "staged.damaged",
        "A staged volume did not match its checksums; it is in quarantine and staged anew when wanted.",
        "Look at the disk of the cache: a second one is no accident.",
    )
    STAGED_LOADED = (
        "staged.loaded",
        "A process of this node loaded a staged volume: an access to patient data.",
    )
    STAGER_DISK_LOST = (
        "stager.disk_lost",
        "A disk of the cache fails; staging goes on with the others.",
        "Replace it, then restart the stager.",
    )


class _Metric(StrEnum):
    """A metric with unit (UCUM), meaning, next step and the labels it may carry."""

    unit: str
    meaning: str
    next_step: str
    labels: tuple[str, ...]

    def __new__(cls, value: str, unit: str, meaning: str, next_step: str, *labels: str) -> _Metric:  # noqa: PYI034 - as above
        member = str.__new__(cls, value)
        member._value_ = value
        member.unit = unit
        member.meaning = meaning
        member.next_step = next_step
        member.labels = labels
        return member


class Counter(_Metric):
    """Only ever grows."""

    INGEST_INSTANCES = (
        "isocenter.ingest.instances",
        "{instance}",
        "Instances taken in, by outcome: stored, known (re-sent) or rejected.",
        "A rising share of rejected: see `isocenter.ingest.rejections` by reason.",
        "protocol",
        "outcome",
    )
    INGEST_REJECTIONS = (
        "isocenter.ingest.rejections",
        "{instance}",
        "Instances refused, by reason code.",
        "out-of-resources: free space or the bus; any other: the sender's data.",
        "protocol",
        "reason",
    )
    INGEST_BYTES = (
        "isocenter.ingest.io",
        "By",
        "Bytes of instances taken in.",
        "Compare with the network's capacity when transfers are slow.",
        "protocol",
    )
    INGEST_TRANSFERS = (
        "isocenter.ingest.transfers",
        "{transfer}",
        "Associations and STOW-RS requests that ended, by outcome: closed, aborted or rejected.",
        "Many aborted: sender time-outs or network.",
        "protocol",
        "outcome",
    )
    INGEST_PULLS = (
        "isocenter.ingest.pulls",
        "{study}",
        "Attempts to fetch an announced study, by kind of source and outcome: ok, or the reason code.",
        "Other than ok: see `pull.failed` in the log, and `isocenter dlq ls`.",
        "protocol",
        "outcome",
    )
    COMMITMENT_REQUESTS = (
        "isocenter.commitment.requests",
        "{request}",
        "Requests for storage commitment, by outcome: requested, refused, reported or given-up.",
        "given-up: see `commitment.given_up` in the log.",
        "outcome",
    )
    COMMITMENT_INSTANCES = (
        "isocenter.commitment.instances",
        "{instance}",
        "Instances that storage commitment was asked for, by outcome: committed, or the Failure Reason.",
        "0110: a damaged object, see `commitment.checked` in the log.",
        "outcome",
    )
    INGEST_TLS_FAILURES = (
        "isocenter.ingest.tls.failures",
        "{connection}",
        "Connections to the DICOM TLS port that ended in the handshake.",
        "`tls.handshake_failed` in the log says why: an expired or unknown certificate, or a port scan.",
    )
    EVENTS_SENT = (
        "messaging.client.sent.messages",
        "{message}",
        "Events published.",
        "With error_type: the bus refuses; see `bus.unavailable` in the log.",
        "topic",
        "event_type",
        "error_type",
    )
    EVENTS_CONSUMED = (
        "messaging.client.consumed.messages",
        "{message}",
        "Events a group finished: ok, ignored, unknown-type, retried, parked, dead-lettered, nacked.",
        "Anything but ok grows: see the log of the same group.",
        "topic",
        "group",
        "event_type",
        "outcome",
    )
    DEAD_LETTERS = (
        "isocenter.bus.dead_letters",
        "{message}",
        "Events moved to a dead-letter topic.",
        "`isocenter dlq ls`.",
        "topic",
        "group",
        "reason",
    )
    CONSUMER_RESTARTS = (
        "isocenter.bus.consumer.restarts",
        "{restart}",
        "Consumers that were started anew because they took no records.",
        "More than one after a fault of the broker: see `consumer.restarted` in the log.",
        "topic",
        "group",
    )
    STAGER_REQUESTS = (
        "isocenter.stager.requests",
        "{request}",
        "Series asked for on this node, by outcome: hit, staged or failed.",
        "failed: see `staging.failed` in the log; few hits: prefetch misses what is used.",
        "outcome",
    )
    STAGER_LOADS = (
        "isocenter.stager.loads",
        "{load}",
        "Volumes loaded from this node, by mode.",
        "Another mode than the node's own: `isocenter gpu probe` says why.",
        "mode",
    )
    STAGER_LOADED_BYTES = (
        "isocenter.stager.io",
        "By",
        "Bytes loaded from staged volumes, by mode.",
        "Divide by `isocenter.stager.load.duration` for the rate, and compare with the disk's.",
        "mode",
    )
    STAGER_EVICTIONS = (
        "isocenter.stager.evictions",
        "{series}",
        "Staged series that left this node, by reason.",
        "Many for space: raise the quota, or prefetch less. damaged: look at the disk.",
        "reason",
    )
    INDEX_INSTANCES = (
        "isocenter.index.instances",
        "{instance}",
        "Instances offered to the index, by outcome: new, known or conflict.",
        "conflict grows: a system re-uses SOP Instance UIDs.",
        "outcome",
    )
    PARSERS_LOST = (
        "isocenter.index.parsers_lost",
        "{process}",
        "Child processes that were lost over the header of an instance, by reason.",
        "grows: somebody sends hostile or broken headers; see `parser.lost`.",
        "reason",
    )
    STUDIES_SETTLED = (
        "isocenter.index.settled",
        "{study}",
        "Study versions that settled, by reason.",
        "Mostly max-wait: the quiet period is longer than the pauses between transfers.",
        "reason",
    )
    STORE_ERRORS = (
        "isocenter.store.errors",
        "{request}",
        "Requests to the object store that failed after their retries. What was not found is no error.",
        "store-full: free space or raise the quota; store-unavailable: store or network; else: credentials.",
        "operation",
        "error_type",
    )
    INDEX_ERRORS = (
        "isocenter.index.errors",
        "{request}",
        "Calls of the index that failed. What was not found is no error.",
        "index-unavailable: the database, its primary or the network; GET /readyz says more.",
        "operation",
        "error_type",
    )
    GATEWAY_BYTES = (
        "isocenter.gateway.io",
        "By",
        "Bytes of instances, frames and metadata sent to readers.",
        "Compare with the network's capacity when viewers are slow.",
        "route",
    )


class Histogram(_Metric):
    """A distribution, in seconds."""

    INGEST_STORE = (
        "isocenter.ingest.store.duration",
        "s",
        "From the first byte of an instance to Success: object durable, event durable or certain to come.",
        "Compare with `messaging.client.operation.duration` to see which of the two is slow.",
        "protocol",
    )
    STAGER_STAGE = (
        "isocenter.stager.stage.duration",
        "s",
        "From a request for a series to its volumes ready on this node; hits are not counted.",
        "Slow: the store, or decoding; the span `stage series` tells which.",
    )
    STAGER_LATENCY = (
        "isocenter.stager.latency",
        "s",
        "From the last instance of a series acknowledged to its volumes ready on this node.",
        "Mostly the quiet period of settling; see `isocenter trace`.",
    )
    STAGER_LOAD = (
        "isocenter.stager.load.duration",
        "s",
        "One load of a staged volume, by mode, as the loading process measured it.",
        "Slow: a cold disk, or a slower mode than the node's own.",
        "mode",
    )
    PUBLISH = (
        "messaging.client.operation.duration",
        "s",
        "From publish to durable.",
        "Slow: the broker's disks, or the data directory's in embedded mode.",
        "topic",
        "error_type",
    )
    PROCESS = (
        "messaging.process.duration",
        "s",
        "Time one handler takes for one event.",
        "Slow: the store or the index it writes to.",
        "topic",
        "group",
        "error_type",
    )
    STORE = (
        "isocenter.store.operation.duration",
        "s",
        "Time one request to the object store takes, its retries included.",
        "put slow: the store's disks; all slow: its gateway or the network. Its count is the requests.",
        "operation",
    )
    INDEX = (
        "isocenter.index.operation.duration",
        "s",
        "Time one call of the index takes; of calls that list, without the time of their reader.",
        "apply slow: the database's disks; search slow: its memory. Its count is the calls.",
        "operation",
    )
    SETTLE_LATENESS = (
        "isocenter.index.settle.lateness",
        "s",
        "From the end of a study's quiet period to its `study.settled` event being durable.",
        "Grows: the settler cannot keep up; look at manifests and index.",
    )
    LOOP_DELAY = (
        "isocenter.loop.delay",
        "s",
        "How late the event loop of the process runs what is due now; measured twice a second.",
        "Above 0.1 s: the process lacks CPU, or something blocks in it. Raise its CPU limit or add replicas.",
    )
    HTTP_SERVER = (
        "http.server.request.duration",
        "s",
        "Duration of HTTP requests by route.",
        "Slow retrievals: the object store. Slow searches: the index.",
        "method",
        "route",
        "status_code",
        "error_type",
    )


class Gauge(_Metric):
    """A value that goes up and down. Each replica reports its own part, to be added up, or, where the meaning
    says "shared" (`SHARED`), one and the same thing.
    """

    INGEST_ASSOCIATIONS = (
        "isocenter.ingest.associations",
        "{association}",
        "DICOM associations open now.",
        "At the configured maximum senders are turned away.",
    )
    INGEST_ASSOCIATIONS_LIMIT = (
        "isocenter.ingest.associations.limit",
        "{association}",
        "DICOM associations that may be open at once.",
        "Raise `ISOCENTER_INGEST_MAX_ASSOCIATIONS` or add replicas when the open ones come near.",
    )
    INGEST_REFUSING = (
        "isocenter.ingest.refusing",
        "1",
        "1 while instances are refused before they are read for this reason: disk, object-store or bus.",
        "`intake.shut` in the log says what to do.",
        "reason",
    )
    UNANNOUNCED = (
        "isocenter.ingest.unannounced",
        "{instance}",
        "Instances whose object is durable and whose event is not known to be; it is tried again.",
        "Stays above 0: the bus refuses; see `announcement.delayed` in the log. Nothing is lost.",
    )
    STAGER_BYTES = (
        "isocenter.stager.bytes",
        "By",
        "Bytes staged on this node, by state: ready, making or evicting.",
        "Near the quota: what is used least goes; see `isocenter staged`.",
        "state",
    )
    STAGER_QUOTA = (
        "isocenter.stager.quota",
        "By",
        "Bytes that may be staged on this node.",
        "Raise `ISOCENTER_GPU_STAGER_QUOTA_BYTES` where the disk has room.",
    )
    STAGER_LEASES = (
        "isocenter.stager.leases",
        "{lease}",
        "Leases on staged series that processes of this node hold.",
        "Never falls: a process keeps volumes open that it does not use.",
    )
    CONSUMER_LAG = (
        "isocenter.bus.consumer.lag",
        "{message}",
        "Events that a group has not processed yet, of the partitions of this replica: sum over replicas.",
        "Grows without end: the group is stopped or too slow; see /readyz.",
        "topic",
        "group",
    )
    PARKED = (
        "isocenter.bus.parked",
        "{study}",
        "Studies with events waiting for a retry. Shared: take the maximum.",
        "Find the dependency in `event.retried` log lines.",
        "topic",
        "group",
    )
    DEAD_LETTERS_KEPT = (
        "isocenter.bus.dead_letters.kept",
        "{message}",
        "Records on the dead-letter topic of a group, replayed ones included. Shared: take the maximum.",
        "`isocenter dlq ls` tells which of them were replayed.",
        "topic",
        "group",
    )
    OUTBOX_PENDING = (
        "isocenter.index.outbox",
        "{message}",
        "Events decided and not published yet. Shared: take the maximum.",
        "Grows: the bus is down; nothing is lost.",
    )
    STUDIES_RECEIVING = (
        "isocenter.index.receiving",
        "{study}",
        "Studies that have not settled. Shared: take the maximum.",
        "Grows: see `isocenter.index.settle.overdue`.",
    )
    RECEIVING_AGE = (
        "isocenter.index.receiving.age",
        "s",
        "Age of the first unsettled instance of the study unsettled for longest. Shared: take the maximum.",
        "Near `ISOCENTER_INDEXER_MAX_WAIT_SECONDS`: its sender never pauses. Beyond: as for settle.overdue.",
    )
    SETTLE_OVERDUE = (
        "isocenter.index.settle.overdue",
        "s",
        "How long the study that is due for longest waits for a settler. Shared: take the maximum.",
        "Grows: no settler works, or each try fails; see `study.settle_failed` in the log.",
    )
    OUTBOX_AGE = (
        "isocenter.index.outbox.age",
        "s",
        "Age of the oldest event decided and not published yet. Shared: take the maximum.",
        "Grows: the bus is down, or refuses that event; see `outbox.delayed` in the log.",
    )
    SPANS_LOST = (
        "isocenter.telemetry.spans_lost",
        "{span}",
        "Spans that the local store could not keep since the start.",
        "Check free space under the data directory; studies are not affected.",
    )
    DISK_FREE = (
        "isocenter.disk.free",
        "By",
        "Free space under the data directory. Shared by the processes of a machine: take the maximum.",
        "Free some before it is used up: senders are refused when an object cannot be made durable.",
    )
    DISK_SIZE = (
        "isocenter.disk.size",
        "By",
        "Size of the file system of the data directory. Shared likewise: take the maximum.",
        "Compare `isocenter.disk.free` with it.",
    )
    CHECK = (
        "isocenter.check",
        "1",
        "1 when this readiness check passed at the last look, else 0; every scrape looks.",
        "GET /readyz says what to do about it.",
        "check",
    )
    READY = (
        "isocenter.ready",
        "1",
        "1 when every readiness check of the service passed at the last look, else 0; every scrape looks.",
        "GET /readyz names the check.",
    )


SHARED = frozenset(
    {
        Gauge.PARKED,
        Gauge.DEAD_LETTERS_KEPT,
        Gauge.OUTBOX_PENDING,
        Gauge.OUTBOX_AGE,
        Gauge.STUDIES_RECEIVING,
        Gauge.RECEIVING_AGE,
        Gauge.SETTLE_OVERDUE,
        Gauge.DISK_FREE,
        Gauge.DISK_SIZE,
    }
)
"""Gauges of one thing that every replica looks at: adding them up would count it once per replica."""

LABELS: dict[str, str] = {
    "protocol": "isocenter.protocol",
    "outcome": "isocenter.outcome",
    "reason": "isocenter.reason",
    "mode": "isocenter.stager.mode",
    "state": "isocenter.stager.state",
    "event_type": "cloudevents.event_type",
    "topic": "messaging.destination.name",
    "group": "messaging.consumer.group.name",
    "error_type": "error.type",
    "operation": "isocenter.operation",
    "check": "isocenter.check_name",
    "method": "http.request.method",
    "route": "http.route",
    "status_code": "http.response.status_code",
}
"""Label arguments in code -> attribute names of the semantic conventions. Few values each: never an id."""

STUDY_KEY = "isocenter.study_key"
"""Span attribute by which `isocenter trace` finds the traces of a study."""
