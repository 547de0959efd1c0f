"""A file of the planner's: one JSON object, with a version, read and written whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from pdd_core.errors import ConfigurationError, SchemaVersionError
from pdd_core.schema_version import check_version

if TYPE_CHECKING:
    from pathlib import Path

_VERSION = "1.0"


class JsonFile(BaseModel):
    """The content of such a file. Fields that are not known are ignored, unless a kind of file refuses them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Annotated[str, AfterValidator(lambda version: check_version(version, own=_VERSION))] = _VERSION

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read a file.

        Raises:
            ConfigurationError: `file` cannot be read, or a field cannot be used; the message names both.
        """
        try:
            return cls.model_validate(json.loads(file.read_text("utf-8")))
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}" for one in error.errors()
            )
            raise ConfigurationError(f"{file} is no {cls.__name__}: {problems}") from error
        except RecursionError as error:
            raise ConfigurationError(f"{file} cannot be read: nested too deeply") from error
        except (OSError, ValueError, SchemaVersionError) as error:
            raise ConfigurationError(f"{file} cannot be read: {error}") from error

    def save(self, file: Path) -> None:
        """Write the file, without what it does not have.

        Raises:
            ConfigurationError: `file` cannot be written.
        """
        try:
            file.write_text(self.model_dump_json(indent=2, exclude_none=True) + "\n", "utf-8")
        except OSError as error:
            raise ConfigurationError(f"{file} cannot be written: {error}") from error
