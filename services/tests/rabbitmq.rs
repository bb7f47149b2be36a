//! A private RabbitMQ: started, frozen, killed, restarted.

use services::{Kind, Service};
use std::time::{Duration, Instant};

#[test]
fn lives_freezes_dies_and_comes_back() {
    let began = Instant::now();
    let rabbitmq = Service::start(Kind::RabbitMq).unwrap();
    println!("RabbitMQ ready after {:?}", began.elapsed());
    let view = rabbitmq.rabbitmq().unwrap();
    assert_eq!(view.connections().unwrap(), []);
    assert_eq!(view.queues(rabbitmq.database()).unwrap(), []);
    assert_eq!(view.unclean_closes().unwrap(), [""; 0]);
    assert!(view.ctl(&["list_vhosts"]).unwrap().lines().any(|vhost| vhost == rabbitmq.database()));

    let declare =
        r#"rabbit_amqqueue:declare(rabbit_misc:r(<<"/">>, queue, <<"kept">>), true, false, [], none, <<"me">>)"#;
    view.eval(declare).unwrap();
    let queues = view.queues("/").unwrap();
    assert_eq!((queues.len(), queues[0].name.as_str(), queues[0].ready), (1, "kept", 0));

    let began = Instant::now();
    view.memory_alarm(true).unwrap();
    view.memory_alarm(false).unwrap();
    println!("memory alarm raised and cleared in {:?}", began.elapsed());

    rabbitmq.freeze().unwrap();
    assert!(view.connections().is_err(), "a frozen server must not answer");
    rabbitmq.thaw().unwrap();
    assert_eq!(view.connections().unwrap(), []);

    let (port, pid) = (rabbitmq.port(), rabbitmq.pid());
    rabbitmq.kill().unwrap();
    assert!(view.connections().is_err());
    let began = Instant::now();
    rabbitmq.restart().unwrap();
    println!("RabbitMQ ready again after {:?}", began.elapsed());
    assert_eq!(rabbitmq.port(), port);
    assert_ne!(rabbitmq.pid(), pid);
    assert_eq!(view.queues("/").unwrap().len(), 1);

    // A client that just goes away is in the log.
    let mut rude = std::net::TcpStream::connect((rabbitmq.host(), rabbitmq.port())).unwrap();
    std::io::Write::write_all(&mut rude, b"AMQP\x00\x00\x09\x01").unwrap();
    std::io::Read::read_exact(&mut rude, &mut [0; 7]).unwrap();
    drop(rude);
    let end = Instant::now() + Duration::from_secs(20);
    while view.unclean_closes().unwrap().is_empty() {
        assert!(Instant::now() < end, "nothing of it in {}", rabbitmq.log().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("{:?}", view.unclean_closes().unwrap());
    assert_eq!(view.unclean_closes().unwrap().len(), 1);

    let began = Instant::now();
    rabbitmq.stop().unwrap();
    println!("RabbitMQ stopped in {:?}", began.elapsed());
}
