"""The rows of the conformance suite that ask their client for input in the middle of a call."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from body_broker.calls import Arguments, Call, PromptText, Result
from body_broker.inputs import AskClient, Form, Question, Roots, Turn


class Nothing(Arguments):
    """No arguments."""


class Said(Result):
    said: str

    def text(self) -> str:
        return self.said


class Asked(Arguments):
    """What the suite says to tools of the older revision."""

    prompt: Annotated[str, Field(max_length=200)] = ""
    message: Annotated[str, Field(max_length=200)] = ""


def form(message: str, field: str, kind: str = "string") -> Form:
    return Form(message, {field: {"type": kind}}, (field,))


NAME = form("What is your name?", "name")
CONFIRM = form("Please confirm.", "ok", "boolean")
CAPITAL = Turn("What is the capital of France?", tokens_max=100)


def fields_of(call: Call, name: str, question: Question) -> dict[str, Any]:
    """What the client filled in; asks it as long as it did not."""
    given = call.inputs.answers.get(name)
    if not isinstance(given, dict) or not given:
        raise AskClient({name: question})
    return given  # pyright: ignore[reportUnknownVariableType]  # any JSON


async def elicitation(_arguments: Nothing, call: Call, _services: object) -> Said:
    return Said(said=f"Hello, {fields_of(call, 'user_name', NAME).get('name')}!")


async def sampling(_arguments: Nothing, call: Call, _services: object) -> Said:
    if "capital_question" not in call.inputs.answers:
        raise AskClient({"capital_question": CAPITAL})
    return Said(said=f"The client's model says: {call.inputs.answers['capital_question']}")


async def roots(_arguments: Nothing, call: Call, _services: object) -> Said:
    if "client_roots" not in call.inputs.answers:
        raise AskClient({"client_roots": Roots()})
    return Said(said=f"The client works in {call.inputs.answers['client_roots']}")


async def request_state(_arguments: Asked, call: Call, _services: object) -> Said:
    if call.inputs.state != "confirming" or "confirm" not in call.inputs.answers:
        raise AskClient({"confirm": CONFIRM}, state="confirming")
    return Said(said="state-ok")


async def multiple_inputs(_arguments: Nothing, call: Call, _services: object) -> Said:
    questions = {"user_name": NAME, "greeting": Turn("Generate a greeting", tokens_max=50), "client_roots": Roots()}
    if call.inputs.state is None or not questions.keys() <= call.inputs.answers.keys():
        raise AskClient(questions, state=sorted(questions))
    return Said(said=f"Got {', '.join(sorted(call.inputs.answers))}.")


async def multi_round(_arguments: Nothing, call: Call, _services: object) -> Said:
    state: dict[str, Any] = call.inputs.state or {}
    answers = call.inputs.answers
    if "step1" in answers:
        state = {"name": answers["step1"]["name"]}
    if "name" not in state:
        raise AskClient({"step1": form("Step 1: What is your name?", "name")}, state={"step": 1})
    if "step2" not in answers:
        raise AskClient({"step2": form("Step 2: What is your favorite color?", "color")}, state=state)
    return Said(said=f"{state['name']} likes {answers['step2']['color']}.")


async def capabilities(_arguments: Nothing, call: Call, _services: object) -> Said:
    if not call.inputs.answers:
        wanted: dict[str, Question] = {"capital_question": CAPITAL, "user_name": NAME}
        raise AskClient({name: q for name, q in wanted.items() if type(q) in call.inputs.askable} or wanted)
    return Said(said="Thank you.")


async def prompt(_arguments: Nothing, call: Call, _services: object) -> PromptText:
    asked = form("What context should the prompt use?", "context")
    given = fields_of(call, "user_context", asked)
    return PromptText(content=f"Use this context: {given.get('context')}", from_outside=False)


async def streaming(_arguments: Nothing, call: Call, _services: object) -> Said:
    await call.progress(1, 2)
    return Said(said=f"Hello, {fields_of(call, 'user_name', NAME).get('name')}!")


async def missing_capability(_arguments: Nothing, _call: Call, _services: object) -> Said:
    raise AskClient({"capital_question": CAPITAL})


async def sampling_of_old(_arguments: Asked, call: Call, _services: object) -> Said:
    return await sampling(Nothing(), call, _services)


async def elicitation_of_old(_arguments: Asked, call: Call, _services: object) -> Said:
    return await elicitation(Nothing(), call, _services)


# By the names that the suite calls them by.
TOOLS = {
    "test_input_required_result_elicitation": elicitation,
    "test_input_required_result_sampling": sampling,
    "test_input_required_result_list_roots": roots,
    "test_input_required_result_request_state": request_state,
    "test_input_required_result_tampered_state": request_state,
    "test_input_required_result_multiple_inputs": multiple_inputs,
    "test_input_required_result_multi_round": multi_round,
    "test_input_required_result_capabilities": capabilities,
    "test_streaming_elicitation": streaming,
    "test_missing_capability": missing_capability,
    "test_sampling": sampling_of_old,
    "test_elicitation": elicitation_of_old,
    "test_elicitation_sep1034_defaults": elicitation_of_old,
    "test_elicitation_sep1330_enums": elicitation_of_old,
}
