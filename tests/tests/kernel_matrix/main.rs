//! What Linux checks of `iommufd`, checked here.
//!
//! The kernel's own tests of `iommufd` are a matrix of cases and variants. 174 of their 246 instances are
//! about the address space itself; each has a test here, under a name that says what is checked. The rest
//! needs structures of the interface, file numbers, several processes, or virtual IOMMUs, faults and
//! PASIDs.
//!
//! | their fixture | cases | variants | instances | here |
//! |---|---:|---:|---:|---|
//! | `iommufd` | 3 | 1 | 3 | [`others`] |
//! | `iommufd_ioas` | 21 | 4 | 84 | [`ioas`] |
//! | `iommufd_mock_domain` | 7 | 6 | 42 | [`mock_domain`] |
//! | `iommufd_dirty_tracking` | 5 | 9 | 45 | [`dirty_tracking`] |
//! | all | 36 | | 174 | |
//!
//! [`compat`] adds the library's part of `vfio_compat_mock_domain` (5 cases, 2 variants), [`known_bugs`] one
//! test for each bug that the kernel had or has, [`callbacks`] what is demanded of accesses that are told
//! to let go, [`failures`] operations of several steps that fail at one of them, [`threads`] operations at
//! the same time.
//!
//! # What differs everywhere
//!
//! - Objects are owned. There are no numbers to look up, so that "unknown object" cannot happen; where the
//!   kernel refuses to destroy what is in use, here whoever holds it keeps it, and the tests check who does.
//! - Errors are typed; a test names the variant where the kernel's names an error number.
//! - Their devices and hardware page tables are domains: [`ModelSink`] with leaves of 2 KiB from 16 MiB to
//!   2 GiB, like their mock, and with the checks that the older mock had, that each unmap begins and ends
//!   where a map did.
//! - Every fixture ends with a ledger: nothing is pinned, every sink is empty, synced and unbound, and
//!   nobody else holds the space. No page is ever unpinned before all sinks that reached it were synced.
//! - There is no limit on temporary memory to be set. Its variant, `small_batches`, has memory without two
//!   pages in a row, so that every page is a run.
//! - An unmap is all or nothing, and says whether holes are fine; theirs stops where it fails, and fails
//!   if nothing at all was mapped.
//!
//! # `iommufd`
//!
//! | their test | ours | what differs |
//! |---|---|---|
//! | `simple_close` | `a_space_without_anything_ends` | |
//! | `global_options` | `options_belong_to_one_space_or_one_memory` | how pins are counted is a budget of the pages, large pages an option of the space; a value that is neither on nor off has no type |
//! | `vfio_ioas` | `an_access_is_bound_to_the_space_that_it_was_told` | the space that a container works on is a binding: none, set, another, none again |
//!
//! # `iommufd_ioas`
//!
//! Variants: `no_domain`, `one_domain`, `two_domains`, `small_batches`.
//!
//! | their test | ours | what differs |
//! |---|---|---|
//! | `ioas_auto_destroy` | `a_space_that_ends_takes_everything_along` | |
//! | `ioas_destroy` | `a_domain_serves_one_space_until_that_ends` | a space with domains can be dropped; the domains are free then, and refused to others before |
//! | `hwpt_attach` | `a_domain_joins_by_hand_and_a_stranger_cannot_leave` | |
//! | `ioas_area_destroy` | `an_area_does_not_keep_its_space` | |
//! | `ioas_area_auto_destroy` | `ten_areas_end_with_their_space` | |
//! | `area` | `areas_neither_overlap_nor_are_they_divided` | |
//! | `unmap_fully_contained_areas` | `an_unmap_takes_whole_areas_and_tells_their_bytes` | also that a refused one changes nothing, and that a domain is synced once |
//! | `area_auto_iova` | `chosen_addresses_fit_the_length_the_reserved_and_the_allowed` | the alignment is at most that of the memory, which is no virtual address |
//! | `reserved_overflow` | `a_reservation_of_nearly_everything_leaves_no_room` | |
//! | `area_allowed` | `what_is_allowed_cannot_be_reserved_nor_the_other_way_round` | |
//! | `copy_area` | `areas_are_copied_inside_a_space_and_to_another` | |
//! | `iova_ranges` | `free_ranges_are_what_nobody_reserved` | a list has no slots that it could overrun |
//! | `access_domain_destory` | `pages_that_an_access_holds_outlive_the_domain` | |
//! | `access_pin` | `pins_of_any_length_stay_while_domains_come_and_go` | |
//! | `access_pin_unmap` | `an_unmap_asks_for_a_pin_and_it_goes` | |
//! | `access_rw` | `bytes_are_read_and_written_across_pages` | there is one path, not a fast one and a slow one; also across areas |
//! | `access_rw_unaligned` | `bytes_are_read_and_written_where_the_address_divides_a_page` | |
//! | `ioas_option_huge_pages` | `large_pages_are_an_option_of_spaces_without_areas_or_domains` | |
//! | `ioas_iova_alloc` | `lengths_that_divide_a_leaf_are_refused_once_there_is_a_domain` | |
//! | `ioas_align_change` | `alignment_rises_only_over_areas_that_fit_it` | theirs skips variants with domains; ours checks that they refuse |
//! | `copy_sweep` | `a_copy_begins_and_ends_anywhere_inside_areas` | |
//!
//! # `iommufd_mock_domain`
//!
//! Variants: `one_domain`, `one_domain_large`, `two_domains`, `two_domains_large` (simulated memory in
//! runs of one page, or of 2 MiB), `one_domain_file`, `one_domain_file_large` (a `memfd`, whose output
//! addresses are those of its mapping in the program; large means as long as two huge pages).
//!
//! | their test | ours | what differs |
//! |---|---|---|
//! | `basic` | `memory_that_is_not_there_is_not_mapped` | what ends a mapping of theirs, memory that is not mapped, is a simulated pin that fails |
//! | `ro_unshare` | `a_later_write_does_not_move_what_is_mapped_for_reading` | memory is shared, so that there is nothing to unshare; address and contents are checked, and that rights are kept |
//! | `all_aligns` | `every_alignment_pins_each_page_once` | |
//! | `all_aligns_copy` | `every_alignment_survives_domains_that_come_and_go` | |
//! | `user_copy` | `memory_that_an_access_brought_is_copied_to_other_spaces` | |
//! | `replace` | `a_domain_takes_the_place_of_another` | a domain goes to another space by way of none; also that the old one stays if the new one fails |
//! | `alloc_hwpt` | `domains_are_made_by_hand_and_refuse_what_they_cannot_do` | flags that are unknown have no type; what a domain cannot do is refused when it is asked for |
//!
//! # `iommufd_dirty_tracking`
//!
//! Variants: `kib_8`, `kib_16`, `kib_64`, `kib_128`, `kib_320`, `mib_64`, `mib_64_large`, `mib_128`,
//! `mib_128_large`. Small leaves have a bit for each 2 KiB, large ones report the 512 bits of 1 MiB.
//!
//! | their test | ours | what differs |
//! |---|---|---|
//! | `enforce_dirty` | `a_domain_that_cannot_track_is_not_asked_to` | a domain that does not track may join, and is refused when it should |
//! | `set_dirty_tracking` | `tracking_begins_with_nothing_written_and_ends` | to read without tracking is an error, not an empty bitmap |
//! | `device_dirty_capability` | `what_a_domain_can_do_is_known_before` | |
//! | `get_dirty_bitmap` | `every_second_leaf_is_reported_once` | a write is lost if the hardware was not told that its bit is gone; the bitmap lies at byte 0, too |
//! | `get_dirty_bitmap_no_clear` | `every_second_leaf_is_reported_again_unless_it_is_forgotten` | |
//!
//! # `vfio_compat_mock_domain`
//!
//! Variants: `version_1`, `version_2`. Not among the 174.
//!
//! | their test | ours | what differs |
//! |---|---|---|
//! | `option_huge_pages` | `large_pages_are_off_in_version_1` | |
//! | `get_info` | `what_a_container_translates_is_listed` | without the chain of structures |
//! | `map` | `single_pages_are_unmapped_in_any_order` | |
//! | `huge_map` | `slices_of_huge_pages_are_unmapped_in_version_1_only` | version 1 is a split at both ends, then an unmap |
//! | | `an_area_that_software_uses_is_not_divided` | the rules of a cut |
//!
//! # Bugs of the kernel
//!
//! | bug | ours |
//! |---|---|
//! | wrong last page of what was carried to the next batch | `a_pin_anywhere_in_a_run_splits_it_at_its_own_ends` |
//! | alignment and overflow of automatic choice | `a_choice_near_the_last_address_never_wraps` |
//! | overflow in the check of a length | `lengths_and_addresses_at_the_limits_give_errors` |
//! | overflow in divisions of a dirty bitmap | `a_bitmap_at_the_limits_sets_the_bits_that_it_has` |
//! | a late error of an unmap loses the count of bytes | `a_late_error_of_an_unmap_leaves_all_or_tells_the_bytes` |
//! | a hole inside a dirty query is a success | `a_hole_in_a_dirty_query_is_an_error_that_says_where` |
//! | a reference is lost where two kinds of access share a space | [`callbacks`]: `two_who_use_one_area_leave_nothing_behind` |
//! | an access to device memory reached the pin | `device_memory_is_refused_to_software_before_it_is_pinned` |
//! | a callback that pins again exhausts the tries | [`callbacks`]: `a_callback_that_pins_again_is_refused_and_ends_the_unmap` |
//! | a dirty call without a space kept a reference | `a_refused_dirty_call_keeps_nothing_of_its_domain` |
//!
//! [`ModelSink`]: iopt_tests::sink::ModelSink

mod callbacks;
mod compat;
mod dirty_tracking;
mod failures;
mod fixture;
mod ioas;
mod known_bugs;
mod leaving;
#[cfg(target_os = "linux")]
mod mock_domain;
mod others;
mod threads;
