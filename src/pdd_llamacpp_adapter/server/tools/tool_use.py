"""What a request's tools mean for its prompt, its grammar and the reading of its answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.request import GrammarKind
from pdd_llamacpp_adapter.server.tools.formats.hermes import HERMES
from pdd_llamacpp_adapter.server.tools.tool_formats import format_of
from pdd_llamacpp_adapter.server.tools.tool_messages import as_text, described, with_instructions
from pdd_llamacpp_adapter.server.tools.tool_schema import call_or_words, forced_calls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate
    from pdd_llamacpp_adapter.request import Grammar
    from pdd_llamacpp_adapter.server.tools.call_format import CallFormat
    from pdd_llamacpp_adapter.server.wire.json_body import Json

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
MAX_TOOLS = 128
"""As in OpenAI's API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPlan:
    """How the tools of one request reach the model, and how its calls come back."""

    native: CallFormat | None
    """The format of the model's own template; None for a template without tools, or with calls we cannot read."""
    tools: tuple[Json, ...] = ()
    """In the shape of chat completions; empty if the model may not call any."""
    grammar: Grammar | None = None
    """What a forced choice lets the answer be."""
    parallel: bool = True
    """Whether there may be several calls."""
    takes_system: bool = True
    alternates: bool = False
    """Whether the template refuses two messages of the user in a row."""

    @property
    def template_tools(self) -> list[Json] | None:
        """The tools for the template; None if there are none, or it does not take them."""
        return list(self.tools) if self.native and self.tools else None

    @property
    def format(self) -> CallFormat | None:
        """What a call in the answer's text looks like; None if there cannot be one in it."""
        return (self.native or HERMES) if self.tools and self.grammar is None else None

    def format_beside(self, words: Grammar | None) -> CallFormat | None:
        """Return the same for an answer whose words are to look like `words`.

        Beside JSON a call has to be JSON; beside other words there can be none.
        """
        form = self.format
        if form is None or words is None:
            return form
        if words.kind not in (GrammarKind.JSON, GrammarKind.JSON_OBJECT):
            return None
        return form if form.json is not None else HERMES

    @property
    def schemas(self) -> dict[str, Json]:
        """The schemas of the tools' parameters, by the names by which they may be called."""
        return {tool["function"]["name"]: tool["function"]["parameters"] for tool in self.tools}

    def constraint(self, words: Grammar | None) -> Grammar | None:
        """Return what the answer has to look like, if its words are to look like `words`.

        A forced choice leaves no words. Where the choice is the model's, the answer is a call or such words; words
        that are no JSON leave no call.
        """
        form = self.format_beside(words)
        if self.grammar is not None or words is None or form is None or form.json is None:
            return self.grammar or words
        functions = [tool["function"] for tool in self.tools]
        return call_or_words(functions, words, form.json, parallel=self.parallel)

    def messages(self, messages: Sequence[Json]) -> list[Json]:
        """Return `messages` as the template can render them, its tools described if it does not do so itself."""
        if self.native is not None:
            return self.native.past(messages)
        written = as_text(messages, alternating=self.alternates)
        if not self.tools:
            return written
        return with_instructions(written, described(self.tools), system=self.takes_system)


def plan_tools(
    tools: Sequence[Any] | None,
    tool_choice: Any = None,
    parallel_tool_calls: bool | None = True,
    *,
    template: ChatTemplate,
) -> ToolPlan:
    """Return what to do about a request's tools. A request without any has a plan too: its past may have calls.

    A choice of ``required`` or of one function is forced by a grammar, and the answer is nothing but calls. With
    ``auto``, calls are read from the answer's text, and no grammar holds their arguments to the tool's schema
    unless `ToolPlan.constraint` makes one.

    Raises:
        InvalidRequest: a tool or the choice is not one of those that OpenAI's chat completions have.
    """
    functions = [chat_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools or ())]
    if len(functions) > MAX_TOOLS:
        raise InvalidRequest(f"tools must not be more than {MAX_TOOLS}", param="tools")
    chosen, forced = _chosen(functions, tool_choice)
    parallel = parallel_tool_calls is not False
    single = isinstance(tool_choice, dict)
    return ToolPlan(
        native=format_of(template),
        tools=tuple(chosen),
        grammar=forced_calls([tool["function"] for tool in forced], parallel=parallel and not single)
        if forced
        else None,
        parallel=parallel,
        takes_system=template.supports_system,
        alternates=template.alternates,
    )


def _chosen(functions: list[Json], choice: Any) -> tuple[list[Json], list[Json]]:
    """Return the tools that the model is told about, and those among which it has to call one."""
    if isinstance(choice, dict):
        name = _chosen_name(choice)
        named = [tool for tool in functions if tool["function"]["name"] == name]
        if not named:
            raise InvalidRequest("tool_choice names a function that is not among tools", param="tool_choice")
        return functions, named[:1]
    match choice:
        case None | "auto":
            return functions, []
        case "none":
            return [], []
        case "required":
            if not functions:
                raise InvalidRequest("tool_choice 'required' needs tools", param="tool_choice")
            return functions, functions
        case _:
            rule = 'must be "none", "auto", "required", or {"type": "function", "function": {"name": ...}}'
            raise InvalidRequest(f"tool_choice {rule}", param="tool_choice")


def _chosen_name(choice: Json) -> str:
    function = choice.get("function")
    if choice.get("type") != "function" or not isinstance(function, dict):
        raise InvalidRequest('tool_choice must have the type "function" and a function', param="tool_choice.type")
    name = function.get("name")
    if not isinstance(name, str):
        raise InvalidRequest("tool_choice.function.name must be a string", param="tool_choice.function.name")
    return name


def chat_tool(tool: Any, param: str) -> Json:
    """Return `tool`, a tool of chat completions, checked; `param` is its place in the request.

    Raises:
        InvalidRequest: it is none.
    """
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise InvalidRequest(f'{param}.type must be "function", no other is run', param=f"{param}.type")
    made = function(tool.get("function"), f"{param}.function")
    if isinstance(strict := tool["function"].get("strict"), bool):
        made["strict"] = strict  # templates write the whole object
    return {"type": "function", "function": made}


def function(described: Any, param: str) -> Json:
    """Return `described`, a function with `name`, `description`, `parameters` and `strict`, checked and completed.

    Raises:
        InvalidRequest: it is none.
    """
    if not isinstance(described, dict):
        raise InvalidRequest(f"{param} must be an object", param=param)
    name, text = described.get("name"), described.get("description")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        rule = "must be 1 to 64 letters, digits, underscores or dashes"
        raise InvalidRequest(f"{param}.name {rule}", param=f"{param}.name")
    if text is not None and not isinstance(text, str):
        raise InvalidRequest(f"{param}.description must be a string", param=f"{param}.description")
    parameters = described.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        rule = 'must be a JSON schema of the type "object"'
        raise InvalidRequest(f"{param}.parameters {rule}", param=f"{param}.parameters")
    made: Json = {"name": name, "description": text or "", "parameters": {"type": "object", **parameters}}
    return made
