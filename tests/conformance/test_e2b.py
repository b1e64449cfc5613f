"""The E2B provider passes the conformance suite, against the double or the cloud."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from server.sandboxes.base import Limits
from server.sandboxes.e2b.provider import E2BProvider, open_e2b
from tests.conformance.sandbox_suite import NewSpec, SandboxSuite
from tests.e2b_cloud.handle import E2BCloud
from tests.e2b_providers import in_one_task, options_for
from tests.sandboxes import gateway_socket, spec_for

pytestmark = pytest.mark.e2b


class E2B:
    """The fixtures of the suite."""

    @pytest.fixture
    async def provider(self, e2b_cloud: E2BCloud) -> AsyncIterator[E2BProvider]:
        """A provider of an account without other sandboxes."""
        async with in_one_task(open_e2b(options_for(e2b_cloud))) as provider:
            yield provider

    @pytest.fixture
    def new_spec(self) -> Iterator[NewSpec]:
        """Specs with a socket in the gateway's place."""
        with gateway_socket() as gateway:
            yield lambda: spec_for(gateway, Limits(processes=64))


@pytest.mark.slow
class TestE2B(E2B, SandboxSuite):
    """The whole suite."""


class TestCoreOfE2B(E2B):
    """The part of it that every `make test` runs."""

    sandbox = SandboxSuite.sandbox
    test_command = SandboxSuite.test_a_command_gives_its_status_and_both_outputs
    test_conversation = SandboxSuite.test_a_conversation_passes_unchanged_in_both_directions
    test_files = SandboxSuite.test_a_workspace_comes_out_and_goes_in_again_unchanged
    test_reference = SandboxSuite.test_a_sandbox_is_found_again_by_its_reference
    test_end = SandboxSuite.test_a_destroyed_sandbox_is_lost_for_everyone
