# ruff: noqa: F401 - the tests and fixtures that are imported are run here
"""The tests of the checkpoint engine and of rows F04 to F11 again, with the engine as it is shipped into sandboxes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from server.checkpoints import Snapshot
from tests.engines import open_packed_desk
from tests.security.places import secret
from tests.security.test_files_links import (
    test_f04_a_link_in_place_of_the_workspace_itself_is_refused,
    test_f04_the_host_never_reads_or_writes_through_a_link_of_the_agent,
    test_f05_directories_swapped_for_links_all_the_time_lead_nowhere,
    test_f06_hard_links_inside_the_tree_come_back_as_files_with_the_right_content,
    test_f06_nothing_is_written_through_a_hard_link,
)
from tests.security.test_files_special import (
    test_f08_a_file_that_grows_without_end_while_it_is_read_is_read_to_an_end,
    test_f08_a_lease_on_a_file_does_not_hold_the_host_up,
    test_f08_a_sparse_file_of_ten_terabytes_costs_next_to_nothing,
    test_f08_devices_are_never_opened,
    test_f08_names_like_options_and_with_line_feeds_are_only_names,
    test_f08_special_files_neither_block_nor_survive_a_rewind,
)
from tests.unit.checkpoints.test_restoring import (
    scripts,
    test_a_fork_shares_no_file_with_its_origin_or_the_store,
    test_a_present_state_that_is_vouched_for_is_not_read_again,
    test_a_rewind_can_itself_be_undone,
    test_an_unknown_checkpoint_is_not_found_and_changes_nothing,
    test_everything_restored_belongs_to_the_sandbox,
    test_only_what_differs_is_written,
    test_set_user_id_is_never_written_by_the_host,
    test_the_present_is_handed_over_before_anything_changes,
)
from tests.unit.checkpoints.test_taking import (
    test_a_change_with_a_forged_time_and_the_same_size_is_seen,
    test_a_large_file_is_stored_in_pieces_so_that_an_append_costs_one,
    test_a_mode_a_target_and_an_empty_directory_are_changes,
    test_a_touched_file_is_no_change_but_its_time_is_kept,
    test_a_tree_deeper_than_any_path_can_name_is_taken_written_and_removed,
    test_an_unchanged_tree_has_the_same_hash_and_nothing_changed,
    test_another_directory_at_the_same_place_is_read_afresh,
    test_changes_within_one_tick_of_the_clock_are_seen,
    test_equal_trees_have_equal_hashes_whoever_made_them,
    test_names_come_through_byte_for_byte,
    test_special_files_are_skipped_by_name_and_never_opened,
)
from tests.unit.checkpoints.workspaces import Desk, describe, shell

pytestmark = pytest.mark.slow


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_packed_desk(tmp_path) as desk:
        yield desk


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(first=scripts, second=scripts, third=scripts)
async def test_any_tree_comes_back_to_the_last_bit_through_the_shipped_engine(
    first: bytes, second: bytes, third: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with open_packed_desk(tmp_path_factory.mktemp("property")) as desk:
        engine, tree = desk.engine, desk.tree
        seen: list[tuple[Snapshot, object]] = []
        for script in (first, second, third):
            shell(tree, b"mkdir -p ../outside; touch ../stamp\n" + script)
            seen.append((await engine.take("s", tree), describe(tree)))
        for number, (snapshot, wanted) in enumerate((seen[0], seen[2], seen[1])):
            restored = await engine.restore("s", tree, snapshot.tree_hash)
            assert describe(tree) == wanted
            assert restored.exact is not bool(restored.missing or restored.kept)
            again = await engine.take("s", tree)
            if restored.exact:
                assert (again.tree_hash, again.changed) == (snapshot.tree_hash, 0)
            # What the host keeps is enough by itself: a sandbox that never saw the tree gets all of it.
            fork = desk.fork_place(f"fork-{number}")
            await engine.materialise(snapshot.tree_hash, fork, key="fork")
            assert describe(fork) == wanted
            assert not [name for name in os.listdir(desk.home.parent) if name.startswith(".rookery")]
