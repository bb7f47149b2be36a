//! Times a blocking GET of Redis with its checkout and return.

use redis::Commands;
use resource_pool::config::RedisConfig;
use resource_pool::{blocking, redis};
use services::Kind;

use crate::duel::{Duel, Unit};
use crate::session::{Session, clock_of_each};

pub(crate) fn run(session: &Session) {
    let server = session.server(Kind::Redis);
    let pool = blocking::ResourcePool::builder()
        .environment([("", ""); 0])
        .resource(RedisConfig::url(server.url()))
        .build()
        .expect("a pool");
    let client = redis::Client::open(server.url()).expect("a URL of Redis");
    let bare = || client.get_connection().expect("a connection");
    bare().set::<_, _, ()>("price", "101.25").expect("set");
    // The set-up of the crate's documentation, with as many connections as the pool may have.
    let r2d2 = r2d2::Pool::builder().max_size(50).build(client.clone()).expect("r2d2");
    for (threads, id, what) in [
        (1, "redis_get_1", "a blocking Redis GET, checkout included"),
        (4, "redis_get_4", "the same by 4 threads at once"),
        (16, "redis_get_16", "the same by 16 threads at once"),
    ] {
        let count = session.times(20_000 / threads);
        Duel::new(id, what, Unit::Nanoseconds)
            .contestant("resource_pool", || {
                clock_of_each(threads, count, || || get(&mut pool.redis().expect("a connection")))
            })
            .contestant("redis + r2d2", || {
                clock_of_each(threads, count, || || get(&mut *r2d2.get().expect("a connection")))
            })
            .contestant("one bare connection per thread", || {
                clock_of_each(threads, count, || {
                    let mut bare = bare();
                    move || get(&mut bare)
                })
            })
            .times_faster_than("resource_pool", "redis + r2d2", 1.7, None)
            .times_faster_than("resource_pool", "one bare connection per thread", 0.95, 1.0)
            .because(
                "a checkout for each GET: its turn among the others, its line, its owner, and the count for closing",
            )
            .note("On the clock, by all GETs of all threads.")
            .run(session);
    }
    assert!(pool.close_all().expect("on a plain thread").all_closed());
}

fn get(connection: &mut impl redis::ConnectionLike) {
    let price: String = connection.get("price").expect("a price");
    assert_eq!(price, "101.25");
}
