//! Runs the models of `src/lifecycle/model/`: `cargo xtask models`. Without `--cfg model` this crate has no tests.
#![cfg(all(test, model))]

macro_rules! models {
    ($($model:ident)*) => {
        $(#[test]
        fn $model() {
            resource_pool::model::$model();
        })*
    };
}

models! {
    acquire_against_close
    drop_against_drain
    inside_leases_until_its_own_phase
    two_closers_share_one_report
    two_closers_of_one_resource_share_one_report
    cancelled_connect
    generation_changes_under_leases
    loss_against_close
    recovery_in_place_against_close
    reconnect_against_a_recovery
    reconnect_against_a_late_connect
    reopen_against_acquire_and_close
    reopen_before_the_listeners_are_done
    hand_over_against_giving_up
    return_against_new_waiters
    broken_return_against_a_waiter
    openings_against_waiters
    close_against_waiters
    loss_against_openings
    cancelled_opening
}
