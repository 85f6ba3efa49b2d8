"""`orderfleet`: what operators type, and how each process is started. What is done is decided elsewhere."""

import getpass
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import click
from rich.progress import track
from rich.prompt import Prompt
from sqlalchemy.exc import SQLAlchemyError

from ledger import migrate as migrations
from ledger import queries
from ledger.by_hand import MovedOn
from ledger.connection import Ledger
from ledger.queries import Filter
from orders.errors import StepError
from orders.states import NEEDS_A_PERSON, State
from workers.settings import Settings, WrongSettings, read_settings, with_broker
from workers.systems import SYSTEMS

DONE, FAILED = 0, 1
TABLE_ROWS = 100
"""Orders in a table unless `--limit` says otherwise: the newest. JSON is always complete."""


class _WrongSettings(click.ClickException):
    """Every wrong setting, one a line."""

    exit_code = 2

    def __init__(self, wrong: WrongSettings) -> None:
        listed = "\n".join(f"  {problem}" for problem in wrong.problems)
        super().__init__(f"these settings (environment variables) are missing or wrong:\n{listed}")


class _Commands(click.Group):
    """Turns what the commands raise into words and an exit code: 1 failed, 2 wrong usage or settings."""

    def invoke(self, ctx: click.Context) -> Any:
        from workers.operators import Ambiguous, NotPossible

        try:
            return super().invoke(ctx)
        except WrongSettings as wrong:
            raise _WrongSettings(wrong) from None
        except Ambiguous as ambiguous:
            raise click.UsageError(str(ambiguous)) from None
        except (NotPossible, MovedOn) as refusal:
            raise click.ClickException(str(refusal)) from None
        except StepError as error:
            raise click.ClickException(error.reason) from None
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise click.ClickException(f"the ledger does not answer: {cause}\nsee `orderfleet doctor`") from None


@dataclass(frozen=True, slots=True)
class _Age:
    """A moment given as a length of time before now."""

    length: timedelta


def _since(ctx: click.Context, param: click.Parameter, value: str | None) -> _Age | datetime | None:
    """`30m`, `2h`, `3d`, or an ISO date or time (UTC unless it says otherwise)."""
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,5})([smhdw])", value)
    if match:
        return _Age(timedelta(**{units[match[2]]: int(match[1])}))
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not like 30m, 2h, 3d, 2026-05-01 or 2026-05-01T08:00") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _step(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The name of a step of any system."""
    import workers.bootstrap  # noqa: F401 - registers every step
    from tasks.base import STEPS

    if value is not None and value not in STEPS:
        raise click.BadParameter(f"there is no step {value!r}; there are {', '.join(sorted(STEPS))}")
    return value


def _ports(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    """`SYSTEM=PORT`, any number of times."""
    ports = dict(value.partition("=")[::2] for value in values)
    wrong = [system for system, port in ports.items() if system not in SYSTEMS or not port.isdecimal()]
    if wrong:
        raise click.BadParameter(f"{', '.join(wrong)}: give SYSTEM=PORT, with a system of {', '.join(SYSTEMS)}")
    return {system: int(port) for system, port in ports.items()}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"uid {os.getuid()}"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--who", envvar="ORDERFLEET_WHO", help="Your name in the audit trail [default: your user name].")
@click.version_option(package_name="orderfleet")
@click.pass_context
def main(ctx: click.Context, who: str | None) -> None:
    """Keep order systems in step with an ERP: run the fleet, see its orders, act on what stopped.

    ORDER is an order's id, or system[:account]: and its external id or reference. Exit codes: 0 done, 1 something
    failed, 2 wrong usage or settings."""
    ctx.obj = (who or "").strip()[:190] or _user()


# -- processes --------------------------------------------------------------------------------------------------------


@main.command()
@click.option("--sandbox", is_flag=True, help="With imitations of the systems instead of the real ones.")
def up(sandbox: bool) -> None:
    """Run everything on this machine, and show it."""
    from workers.up import run_up

    sys.exit(run_up(None if sandbox else read_settings(), dict(os.environ), sandbox=sandbox))


@main.command()
def worker() -> None:
    """Run the steps of orders (as many processes as you like)."""
    from workers.worker import build_worker, run_worker

    settings = _to_run(with_broker(read_settings()))
    run_worker(build_worker(settings), settings)


@main.command("run-alone", hidden=True)
@click.argument("order", type=int)
@click.argument("fence", type=int)
def run_one(order: int, fence: int) -> None:
    """What a worker starts for an order that workers died on."""
    from workers.quarantine import run_alone
    from workers.worker import worker_name

    _logs()
    run_alone(read_settings(), worker_name(), order, fence)


@main.command()
def beat() -> None:
    """Send the ticks of polls and feeds (two do no harm)."""
    from workers.beat import run_beat

    run_beat(_to_run(with_broker(read_settings())))


@main.command()
def webhooks() -> None:
    """Serve webhooks, health and metrics."""
    from workers.web import run_webhooks

    run_webhooks(_to_run(_with_broker_if_any(read_settings())))


@main.command()
def flower() -> None:
    """Serve Flower: every task, live."""
    from workers.flower import run_flower

    _logs()
    run_flower(with_broker(read_settings()))


@main.command()
@click.option("--port", "ports", callback=_ports, multiple=True, metavar="SYSTEM=PORT", help="[default: a free one]")
@click.option("--rate", type=click.FloatRange(min=0), help="Orders a second; 0: none come by themselves.")
@click.option("--faults", type=click.FloatRange(0, 1), help="The share of requests that misbehave.")
@click.option("--erp-url", metavar="URL", help="Staging tables on which to play the ERP.")
@click.option("--web", metavar="URL", help="The fleet's web server, where webhooks go.")
def sandbox(**chosen: Any) -> None:
    """Run imitations of the systems on this machine, and print the settings that point a fleet at them."""
    from workers.sandbox import run_sandbox

    _logs()
    run_sandbox(**{name: value for name, value in chosen.items() if value is not None}, say=click.echo)


@main.command()
def migrate() -> None:
    """Bring the tables of ledger and ERP staging up to date."""
    from erp.port import open_erp

    settings = read_settings()
    with _opened(settings) as ledger:
        migrations.migrate(ledger)
    try:
        erp = open_erp(settings.erp_url)
    except ValueError as error:
        raise WrongSettings([f"ERP_URL: {error}"]) from None
    try:
        erp.prepare()
    finally:
        erp.close()
    click.echo("the tables are up to date", err=True)


def _to_run(settings: Settings) -> Settings:
    """The settings, once it is sure that a process may start with them."""
    _logs()
    with _opened(settings) as ledger:
        _check_tables(ledger)
    return settings


def _logs() -> None:
    from workers.logs import set_up_logs

    set_up_logs()


def _with_broker_if_any(settings: Settings) -> Settings:
    try:
        return with_broker(settings)
    except WrongSettings:
        return settings


def _check_tables(ledger: Ledger) -> None:
    if migrations.pending(ledger):
        raise click.ClickException("the ledger's tables are not those of this version: run `orderfleet migrate` first")


@contextmanager
def _opened(settings: Settings) -> Iterator[Ledger]:
    """The ledger, whatever is in it."""
    try:
        ledger = Ledger(settings.database_url, pool_size=2)
    except OSError as error:
        raise _no_folder(error) from None
    try:
        yield ledger
    finally:
        ledger.close()


def _no_folder(error: OSError) -> WrongSettings:
    return WrongSettings([f"ORDERFLEET_HOME, DATABASE_URL or ERP_URL: a folder cannot be made: {error}"])


@contextmanager
def _ledger() -> Iterator[Ledger]:
    """The ledger, with tables as this version knows them."""
    with _opened(read_settings()) as ledger:
        _check_tables(ledger)
        yield ledger


@contextmanager
def _fleet(settings: Settings) -> Iterator[Any]:
    from workers.bootstrap import build_fleet

    try:
        fleet = build_fleet(settings)
    except ValueError as error:
        raise WrongSettings([f"ERP_URL: {error}"]) from None
    except OSError as error:
        raise _no_folder(error) from None
    try:
        yield fleet
    finally:
        fleet.erp.close()
        fleet.ledger.close()


# -- what there is ----------------------------------------------------------------------------------------------------

_json = click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
_limit = click.option("--limit", type=click.IntRange(min=1), help="At most so many orders, the newest.")


def _options(command: Any) -> Any:
    """What `orders` and `failed` share with `replay`."""
    for option in (
        click.option("--since", callback=_since, help="Changed since: 30m, 2h, 3d, or an ISO date or time."),
        click.option("--error", metavar="TEXT", help="The reason contains TEXT."),
        click.option("--step", callback=_step, metavar="STEP", help="Standing at this step."),
        click.option("--account", help="Of this account."),
        click.option("--system", type=click.Choice(sorted(SYSTEMS)), help="Of this system."),
    ):
        command = option(command)
    return command


_states = click.option(
    "--state", "states", type=click.Choice([state.value for state in State]), multiple=True, help="May be repeated."
)


def _chosen(ledger: Ledger, since: _Age | datetime | None, states: Sequence[str], **chosen: Any) -> Filter:
    if isinstance(since, _Age):
        since = queries.database_now(ledger) - since.length
    return Filter(since=since, states=tuple(states), **chosen)


@main.command()
@_options
@_states
@click.option("--search", metavar="TEXT", help="TEXT is in the external id, the reference or the reason.")
@_limit
@_json
def orders(as_json: bool, limit: int | None, **chosen: Any) -> None:
    """List orders."""
    with _ledger() as ledger:
        _list(ledger, chosen, limit, as_json)


@main.command()
@_options
@_limit
@_json
def failed(as_json: bool, limit: int | None, **chosen: Any) -> None:
    """List what waits for a person, and why."""
    with _ledger() as ledger:
        _list(ledger, {**chosen, "states": NEEDS_A_PERSON}, limit, as_json)
        if not as_json and queries.odd_events(ledger, 1):
            click.echo("there are events that could not be used: see `orderfleet events`", err=True)


def _list(ledger: Ledger, chosen: dict[str, Any], limit: int | None, as_json: bool) -> None:
    from workers import show

    # One more than the table shows tells whether there are more.
    rows = limit or (None if as_json else TABLE_ROWS + 1)
    found = queries.listing(ledger, _chosen(ledger, **chosen, limit=rows, newest_first=rows is not None))
    if rows is not None:
        found.reverse()
    if as_json:
        click.echo(show.as_json(found))
        return
    more = limit is None and len(found) > TABLE_ROWS
    if more:
        del found[0]
    console = show.terminal()
    if found:
        console.print(show.order_table(found, queries.database_now(ledger), console.width))
    else:
        click.echo("no orders match", err=True)
    if more:
        click.echo(f"these are the newest {TABLE_ROWS}: narrow it down, or use --limit or --json", err=True)


@main.command()
@_limit
@_json
def events(as_json: bool, limit: int | None) -> None:
    """List events that could not be used, or that contradict another."""
    from workers import show

    with _ledger() as ledger:
        found = queries.odd_events(ledger, limit)
    if as_json:
        click.echo(show.as_json(found))
    for event in () if as_json else found:
        name = f"{event['system']}:{event['account']} {event['kind']} {event['external_id'] or ''}".rstrip()
        click.echo(f"{show.minute(event['received_at'])} {show.safe(name)}: {show.safe(event['problem'])}")


@main.command()
@click.argument("order")
@_json
def show(order: str, as_json: bool) -> None:
    """Show one ORDER: where it stands, its plan, and what happened to it."""
    from workers import operators
    from workers import show as page

    with _ledger() as ledger:
        found = operators.find_order(ledger, order)
        plan = queries.plan_of(ledger, found["id"])
        timeline = queries.timeline(ledger, found["id"])
        now = queries.database_now(ledger)
    if as_json:
        click.echo(page.as_json({**found, "plan": plan, "timeline": timeline}))
    else:
        page.terminal().print(page.order_page(found, plan, timeline, now))


# -- what can be done -------------------------------------------------------------------------------------------------


@main.command()
@click.argument("order", required=False)
@_options
@_states
@click.option(
    "--from", "start", callback=_step, metavar="STEP", help="Go again from this step [default: where it stands]."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--acknowledge",
    "--again",
    "acknowledged",
    is_flag=True,
    help="Make calls, too, that cannot be taken back, and effects in doubt again.",
)
@click.option("--done", "happened", is_flag=True, help="The effect in doubt did happen: leave its step out.")
@click.option("--plan", metavar="VERSION", help="Only what an earlier preview with this version showed.")
@_json
@click.pass_obj
def replay(
    who: str,
    /,
    order: str | None,
    start: str | None,
    dry_run: bool,
    yes: bool,
    acknowledged: bool,
    happened: bool,
    plan: str | None,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Let ORDER, or all orders that match, go again. Shows first what would be done.

    Without ORDER only orders that wait for a person are meant, unless --state says otherwise."""
    _check_replay(order, chosen, start, happened)
    with _fleet(read_settings()) as fleet:
        _check_tables(fleet.ledger)
        replaying = _Replay(fleet, who, acknowledged, happened, as_json)
        replaying.foresee(_to_replay(fleet.ledger, order, chosen), start)
        replaying.check_plan(plan)
        if not dry_run and replaying.foreseen:
            replaying.ask(yes)
            replaying.run()
        replaying.report()
    sys.exit(FAILED if replaying.failed else DONE)


def _check_replay(order: str | None, chosen: dict[str, Any], start: str | None, happened: bool) -> None:
    filters = any(chosen.values())
    if order is None and not filters:
        raise click.UsageError("say which: ORDER, or at least one of --system --account --step --error --since --state")
    if order is not None and filters:
        raise click.UsageError("either ORDER or filters, not both")
    if start is not None and happened:
        raise click.UsageError("--done goes on behind the step in doubt: it takes no --from")


def _to_replay(ledger: Ledger, order: str | None, chosen: dict[str, Any]) -> list[dict[str, Any]]:
    from workers import operators

    if order is not None:
        return [operators.find_order(ledger, order)]
    return queries.listing(ledger, _chosen(ledger, **{**chosen, "states": chosen["states"] or NEEDS_A_PERSON}))


class _Replay:
    """One run of `replay`: foresee, ask, do, report. Results by order id, in words."""

    def __init__(self, fleet: Any, who: str, acknowledged: bool, happened: bool, as_json: bool) -> None:
        from workers import operators, show

        self._operators, self._show = operators, show
        self._fleet = fleet
        self._who = who
        self._acknowledged = acknowledged
        self._happened = happened
        self._as_json = as_json
        self._results: dict[int, str] = {}
        self.foreseen: list[Any] = []
        self.failed = False

    def foresee(self, found: list[dict[str, Any]], start: str | None) -> None:
        """Preview every order; shows the preview unless JSON is wanted."""
        self.foreseen = [
            self._operators.foresee(self._fleet, order, start, happened=self._happened)
            for order in self._progress(found, "looking")
        ]
        self.plan = self._operators.plan_version(self.foreseen)
        if self._as_json:
            return
        if not self.foreseen:
            click.echo("no orders match", err=True)
            return
        self._show.terminal().print(self._show.preview_table(self.foreseen))
        click.echo(f"plan {self.plan}: {self._show.orders_in_words(len(self.foreseen))}", err=True)

    def check_plan(self, wanted: str | None) -> None:
        """Refuse a plan that is not the one an earlier preview showed."""
        if wanted is not None and wanted != self.plan:
            raise MovedOn(f"the plan has moved on: it is {self.plan} now, not {wanted}; look at it again")

    def ask(self, yes: bool) -> None:
        """Get the operator's word, or end."""
        if yes:
            return
        if not sys.stdin.isatty():
            raise click.UsageError("nobody can be asked here: add --yes to replay, or --dry-run to look only")
        if any(one.must_acknowledge for one in self.foreseen) and not self._acknowledged:
            question = "some calls cannot be taken back; type 'acknowledge' to make them, or nothing to leave them out"
            answer = Prompt.ask(question, console=self._show.terminal(errors=True), default="", show_default=False)
            self._acknowledged = answer.strip() == "acknowledge"
        click.confirm(f"Replay {self._show.orders_in_words(len(self.foreseen))}?", abort=True, err=True)

    def run(self) -> None:
        """Replay what was foreseen; an order that cannot be does not keep the others."""
        for one in self._progress(self.foreseen, "replaying"):
            try:
                self._operators.replay(
                    self._fleet.ledger, one, self._who, acknowledged=self._acknowledged, happened=self._happened
                )
                self._results[one.order["id"]] = "replayed"
            except (self._operators.NotPossible, MovedOn) as refusal:
                self.failed = True
                self._results[one.order["id"]] = str(refusal)

    def report(self) -> None:
        """Say what came of it."""
        if self._as_json:
            results = ((one, self._results.get(one.order["id"])) for one in self.foreseen)
            click.echo(self._show.as_json([self._show.preview_json(one, self.plan, result) for one, result in results]))
            return
        done = sum(result == "replayed" for result in self._results.values())
        for order_id, result in self._results.items():
            if result != "replayed":
                click.echo(f"order {order_id}: {self._show.safe(result)}", err=True)
        if self._results:
            click.echo(f"set going again: {done} of {self._show.orders_in_words(len(self._results))}", err=True)

    def _progress(self, items: list[Any], what: str) -> Iterable[Any]:
        console = self._show.terminal(errors=True)
        few = len(items) < 2 or not console.is_terminal
        return items if few else track(items, what, console=console, transient=True)


@main.command()
@click.argument("order")
@click.pass_obj
def release(who: str, order: str) -> None:
    """Let ORDER pass although its payment is not known to be good."""
    from workers import operators

    with _ledger() as ledger:
        found = operators.find_order(ledger, order)
        state = operators.release(ledger, found, _system(found), who)
    click.echo(f"order {found['id']} is released: {_stands(found, state)}", err=True)


def _stands(order: dict[str, Any], state: str) -> str:
    if state == State.READY:
        return "it goes on at once"
    return f"it is {state} at {order['step']}, and will pass its payment gate"


@main.command()
@click.argument("order")
@click.argument("name")
@click.option("--data", default="{}", metavar="JSON", help="What goes with it, as the ERP would write it.")
@click.pass_obj
def signal(who: str, order: str, name: str, data: str) -> None:
    """Tell ORDER a fact that it waits for, such as `shipped`, as if the ERP had."""
    from workers import operators

    with _ledger() as ledger:
        found = operators.find_order(ledger, order)
        names = operators.signal_names(ledger, found)
        if name not in names:
            raise click.UsageError(f"there is no signal {name!r}; there are {', '.join(names)}")
        try:
            said = operators.read_signal_data(ledger, found, name, data)
        except ValueError as error:
            raise click.UsageError(f"--data: {error}") from None
        woken = operators.signal(ledger, found, _system(found), name, said, who)
    click.echo(f"order {found['id']} knows {name}{': it goes on' if woken else ''}", err=True)


@main.command("do")
@click.argument("order")
@click.argument("command", required=False)
@click.option("--data", default="{}", metavar="JSON", help="What goes with it: a JSON object.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def do_command(who: str, order: str, command: str | None, data: str, yes: bool) -> None:
    """Do COMMAND to ORDER at its remote system, beside its plan. Without COMMAND: list what can be done.

    Says first what would be done, and asks."""
    from workers import operators

    with _fleet(read_settings()) as fleet:
        found = operators.find_order(fleet.ledger, order)
        known = operators.commands_of(_system(found))
        if command is None:
            for name, one in known.items():
                click.echo(f"{name}: {one.help}")
            return
        if command not in known:
            raise click.UsageError(operators.no_such_command(found, command, known))
        doing = operators.Doing(fleet, found, command, known[command], _json_object(data), who)
        click.echo(doing.ask(), err=True)
        if not yes:
            if not sys.stdin.isatty():
                raise click.UsageError("nobody can be asked here: add --yes to do it")
            click.confirm("Do it?", abort=True, err=True)
        click.echo(f"order {found['id']}: {doing.run()}", err=True)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_float=Decimal)
    except ValueError as error:
        raise click.UsageError(f"--data is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise click.UsageError('--data: give a JSON object, as {"title": "..."}')
    return value


@main.command()
@click.argument("order")
@click.pass_obj
def cancel(who: str, order: str) -> None:
    """Cancel ORDER in the ERP and in its own system."""
    from workers import operators

    with _ledger() as ledger:
        found = operators.find_order(ledger, order)
        operators.cancel(ledger, found, _system(found), who)
        if found["state"] == State.IN_DOUBT:
            click.echo(f"what is in doubt is not taken back: {found['error']}", err=True)
    click.echo(f"order {found['id']} is being cancelled", err=True)


def _system(order: dict[str, Any]) -> Any:
    wiring = SYSTEMS.get(order["system"])
    return wiring.system if wiring is not None else None


@main.command()
@_json
def doctor(as_json: bool) -> None:
    """Look at settings, ledger, broker, ERP, every account and the workers; say what to do."""
    from workers import doctor, show

    try:
        with _fleet(settings := read_settings()) as fleet:
            checks = doctor.examine(settings, fleet)
    except WrongSettings as wrong:
        checks = doctor.wrong_settings(wrong)
    if as_json:
        click.echo(
            show.as_json([{"check": c.name, "level": c.level, "text": c.text, "advice": c.advice} for c in checks])
        )
    else:
        show.terminal().print(show.check_table(checks))
    sys.exit(FAILED if any(check.level is doctor.Level.RED for check in checks) else DONE)


if __name__ == "__main__":
    main()
