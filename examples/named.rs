//! Two Redis servers by name, and no file: `RESOURCE_POOL_REDIS_CACHE_URL` and `RESOURCE_POOL_REDIS_LOCKS_URL` say where
//! they are.

use redis::AsyncCommands;
use resource_pool::ResourcePool;

#[resource_pool::main]
async fn main() -> anyhow::Result<()> {
    let pool = ResourcePool::global();
    let mut cache = pool.redis_named("cache").await?.clone();
    let mut locks = pool.redis_named("locks").await?.clone();
    let key = format!("resource_pool_example_named:{}", std::process::id());
    let () = cache.set(&key, 9.21).await?;
    println!("cached: {}, locked: {}", cache.exists::<_, bool>(&key).await?, locks.exists::<_, bool>(&key).await?);
    let () = cache.del(&key).await?;
    print!("{}", pool.status());
    Ok(())
}
