from typing import Any

available: list[str]
isa: str

def __getattr__(kernel: str) -> Any: ...
