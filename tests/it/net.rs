//! The network as users meet it: published ports, servers, names.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::harness::{Hostel, SOON, eventually};

/// A port of the host's loopback that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The body of an HTTP/1.0 answer, or why there is none.
fn get(port: u16, path: &str) -> Result<Vec<u8>, std::io::Error> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n");
    body.map(|at| answer[at + 4..].to_vec()).ok_or_else(|| std::io::Error::other("no HTTP answer"))
}

fn wait_for_server(port: u16) {
    eventually("the server answers", || get(port, "/").is_ok());
}

#[test]
fn a_published_port_reaches_the_server() {
    let Some(h) = Hostel::new() else { return };
    let port = free_port();
    let server = "sh -c 'mkdir /www && echo hello > /www/index.html && exec httpd -f -p 80 -h /www'";
    h.detached(&format!("--name web -p 127.0.0.1:{port}:80 busybox {server}"));
    wait_for_server(port);
    assert_eq!(get(port, "/").unwrap(), b"hello\n");
    h.run("ps --format '{{.Ports}}'").ok().stdout(&format!("127.0.0.1:{port}->80/tcp\n"));
    h.run("rm -f web").ok();
    eventually("the port is free again", || TcpListener::bind(("127.0.0.1", port)).is_ok());
}

#[test]
fn a_large_file_comes_through_whole() {
    let Some(h) = Hostel::new() else { return };
    let port = free_port();
    let server = "sh -c 'mkdir /www && yes 0123456789abcde | head -n 1250000 > /www/big && echo > /www/index.html && exec httpd -f -p 80 -h /www'";
    h.detached(&format!("-p 127.0.0.1:{port}:80 busybox {server}"));
    wait_for_server(port);
    let body = get(port, "/big").unwrap();
    assert_eq!(body.len(), 20_000_000);
    assert!(body.chunks(16).all(|line| line == b"0123456789abcde\n"));
}

#[test]
fn many_connections_at_once() {
    let Some(h) = Hostel::new() else { return };
    let port = free_port();
    let server = "sh -c 'mkdir /www && echo hello > /www/index.html && exec httpd -f -p 80 -h /www'";
    h.detached(&format!("-p 127.0.0.1:{port}:80 busybox {server}"));
    wait_for_server(port);
    // Eight at a time: the server's backlog holds nine, and what it drops waits seconds for the next try.
    let client = move || (0..8).map(|_| get(port, "/").unwrap()).collect::<Vec<_>>();
    let clients: Vec<_> = (0..8).map(|_| std::thread::spawn(client)).collect();
    for client in clients {
        assert_eq!(client.join().unwrap(), vec![b"hello\n".to_vec(); 8]);
    }
}

#[test]
fn nginx_serves_a_page() {
    let Some(h) = Hostel::debian() else { return };
    let port = free_port();
    h.detached(&format!("--name web -p 127.0.0.1:{port}:80 debian nginx -g 'daemon off;'"));
    wait_for_server(port);
    assert_eq!(get(port, "/").unwrap(), b"served from the fixture\n");
    h.run("stop web").ok();
    h.run("wait web").ok().stdout("0\n");
}

#[test]
fn a_published_udp_port_echoes() {
    let Some(h) = Hostel::debian() else { return };
    let port = free_port();
    let echo = "python3 -c 'import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind((\"0.0.0.0\", 9))\n\
                print(\"ready\", flush=True)\nwhile True:\n  d, a = s.recvfrom(2000)\n  s.sendto(d[::-1], a)'";
    h.detached(&format!("--name echo -p 127.0.0.1:{port}:9/udp debian {echo}"));
    h.wait_for_log("echo", "ready");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut buffer = [0; 2000];
    eventually("an echo", || {
        socket.send_to(b"abc", ("127.0.0.1", port)).unwrap();
        socket.recv(&mut buffer).is_ok_and(|n| &buffer[..n] == b"cba")
    });
    socket.send_to(&[7; 1400], ("127.0.0.1", port)).unwrap();
    eventually("a large echo", || socket.recv(&mut buffer).is_ok_and(|n| n == 1400));
}

#[test]
fn a_port_in_use_is_named() {
    let Some(h) = Hostel::new() else { return };
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    h.run(&format!("run --rm -p 127.0.0.1:{port}:80 busybox true"))
        .fails(125, &[&port.to_string(), "in use"]);
    h.run("ps -aq").ok().stdout("");
}

#[test]
fn a_privileged_port_is_explained() {
    let Some(h) = Hostel::new() else { return };
    let lowest = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if lowest.trim().parse::<u16>().unwrap() <= 81 || nix::unistd::getuid().is_root() {
        return crate::harness::skip("this user may bind port 81");
    }
    h.run("run --rm -p 127.0.0.1:81:80 busybox true").fails(125, &["81", "ip_unprivileged_port_start"]);
}

#[test]
fn a_bad_port_is_refused() {
    let Some(h) = Hostel::new() else { return };
    for port in ["x:80", "80:x", "1:2:3:4", "127.0.0.1:70000:80", "80/sctpx", ""] {
        h.args(&["run", "--rm", "-p", port, "busybox", "true"]).fails(125, &[]);
    }
}

#[test]
fn a_published_port_without_a_number_gets_one() {
    let Some(h) = Hostel::new() else { return };
    let server = "sh -c 'mkdir /www && echo any > /www/index.html && exec httpd -f -p 80 -h /www'";
    h.detached(&format!("--name web -p 127.0.0.1::80 busybox {server}"));
    let format = "{{(index (index .NetworkSettings.Ports \"80/tcp\") 0).HostPort}}";
    let port = h.args(&["inspect", "-f", format, "web"]).ok().out().parse().unwrap();
    wait_for_server(port);
    assert_eq!(get(port, "/").unwrap(), b"any\n");
}

#[test]
fn the_hosts_loopback_is_out_of_reach() {
    let Some(h) = Hostel::new() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    h.run(&format!("run --rm busybox sh -c 'echo x | nc -w 1 127.0.0.1 {port}'")).code(1);
    h.run(&format!("run --rm busybox sh -c 'echo x | nc -w 1 10.0.2.2 {port}'")).code(1);
    h.run(&format!("run --rm --network host busybox sh -c 'echo x | nc -w 1 127.0.0.1 {port}'")).ok();
}

#[test]
fn the_server_ends_with_its_client_in_the_foreground() {
    let Some(h) = Hostel::new() else { return };
    let port = free_port();
    let server = "sh -c 'mkdir /www && echo hello > /www/index.html && exec httpd -f -p 80 -h /www'";
    let client = h.cmd(&format!("run --rm --init -p 127.0.0.1:{port}:80 busybox {server}")).spawn();
    wait_for_server(port);
    client.signal(nix::sys::signal::Signal::SIGTERM);
    client.wait().code(143);
}

#[test]
fn a_container_joins_anothers_network() {
    let Some(h) = Hostel::new() else { return };
    let server =
        "sh -c 'mkdir /www && echo joined > /www/index.html && exec httpd -f -p 127.0.0.1:80 -h /www'";
    h.detached(&format!("--name web --hostname shared --add-host extra:192.0.2.9 busybox {server}"));
    let join = "run --rm --network container:web busybox";
    eventually("the server answers", || {
        h.run(&format!("{join} wget -qO- http://127.0.0.1/")).exit_code() == 0
    });
    h.run(&format!("{join} wget -qO- http://127.0.0.1/")).ok().stdout("joined\n");
    h.run(&format!("{join} hostname")).ok().stdout("shared\n");
    // The namespace is the same, the process table is not.
    let theirs = h.run("exec web readlink /proc/self/ns/net").ok().out();
    h.run(&format!("{join} readlink /proc/self/ns/net")).ok().stdout(&format!("{theirs}\n"));
    h.run(&format!("{join} sh -c 'echo $$'")).ok().stdout("1\n");
    // One file of names: what one writes the other reads.
    h.run(&format!("{join} sh -c 'grep -c extra /etc/hosts && echo 192.0.2.10 later >> /etc/hosts'"))
        .ok()
        .stdout("1\n");
    h.run("exec web grep -c later /etc/hosts").ok().stdout("1\n");

    // Through a container that has joined itself, and into it.
    h.detached("--name mid --network container:web busybox sleep 100");
    h.run("exec mid wget -qO- http://127.0.0.1/").ok().stdout("joined\n");
    h.run("run --rm --network container:mid busybox wget -qO- http://127.0.0.1/").ok().stdout("joined\n");
    let id = h.run("inspect -f {{.Id}} web").ok().out();
    h.run("inspect -f {{.HostConfig.NetworkMode}} mid").ok().stdout(&format!("container:{id}\n"));
    h.run("inspect -f '{{len .NetworkSettings.Networks}}' mid").ok().stdout("0\n");
    h.run("port mid").ok().stdout("");

    // It lives on without the other, and cannot start again without it.
    h.run("stop -t 0 web").ok();
    h.run("exec mid true").ok();
    h.run("stop -t 0 mid").ok();
    h.run("start mid").fails(125, &[&format!("cannot join network of a non running container: {id}")]);
    h.run("rm web").ok();
    h.run("start mid").fails(125, &["No such container"]);
}

#[test]
fn what_cannot_be_said_of_a_joined_network() {
    let Some(h) = Hostel::new() else { return };
    let conflicts = [
        ("-p 80", "port publishing and the container type network mode"),
        ("-P", "port publishing and the container type network mode"),
        ("--expose 80", "port exposing and the container type network mode"),
        ("--dns 192.0.2.1", "dns and the network mode"),
        ("--hostname x1", "hostname and the network mode"),
        ("--add-host a:192.0.2.1", "custom host-to-IP mapping and the network mode"),
    ];
    for (flag, what) in conflicts {
        h.run(&format!("run --rm {flag} --network container:web busybox true"))
            .fails(125, &[&format!("conflicting options: {what}")]);
    }
    h.run("run --rm --network container:nobody busybox true").fails(125, &["No such container: nobody"]);
    h.run("create --name lazy busybox true").ok();
    h.run("run --rm --network container:lazy busybox true")
        .fails(125, &["cannot join network of a non running"]);
    // Nothing was made by what was refused; what failed at its start was to be removed by --rm.
    h.run("ps -a --format {{.Names}}").ok().stdout("lazy\n");
}

#[test]
fn joining_a_container_on_the_hosts_network_is_being_there() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name there --network host busybox sleep 100");
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    h.run("run --rm --network container:there busybox readlink /proc/self/ns/net")
        .ok()
        .stdout(&format!("{}\n", own.display()));
    h.detached("--name empty --network none busybox sleep 100");
    h.run("run --rm --network container:empty busybox sh -c 'ls /sys/class/net'").ok().stdout("lo\n");
}

#[test]
fn networks_are_listed_and_inspected() {
    let Some(h) = Hostel::new() else { return };
    h.run("network ls --format '{{.Name}} {{.Driver}} {{.Scope}}'")
        .ok()
        .stdout("bridge bridge local\nhost host local\nnone null local\n");
    let id = h.run("network ls -q --no-trunc -f driver=bridge").ok().out();
    h.run(&format!("network inspect -f {{{{.Name}}}} {}", &id[..12])).ok().stdout("bridge\n");
    h.detached("--name one1 busybox sleep 100");
    h.run("network inspect -f '{{range .Containers}}{{.Name}}{{end}}' bridge").ok().stdout("one1\n");
    h.run("network inspect -f '{{len .Containers}}' none").ok().stdout("0\n");
    h.run("network inspect nowhere").code(1).stderr_has("network nowhere not found");
    h.run("network rm bridge").fails(1, &["bridge is a pre-defined network and cannot be removed"]);
    h.run("network create mine").fails(1, &["--network container:NAME"]);
}

/// A host address of the test's own, so that its fixed ports are nobody else's.
const OWN: &str = "127.83.7.1";

#[test]
fn ranges_and_conflicts_of_ports() {
    let Some(h) = Hostel::new() else { return };
    // A range gives the first free port; what is asked for by its number comes first, whatever the order.
    h.detached(&format!(
        "--name web -p {OWN}:8000-8002:81 -p {OWN}:8000-8002:80 -p {OWN}:8000:82 -p {OWN}:8090-8091:8090-8091 \
         -p {OWN}:8000-8002:80 --expose 8090-8093 --expose 7/udp busybox sleep 100"
    ));
    h.run("port web").ok().stdout(&format!(
        "80/tcp -> {OWN}:8001\n81/tcp -> {OWN}:8002\n82/tcp -> {OWN}:8000\n8090/tcp -> {OWN}:8090\n8091/tcp -> {OWN}:8091\n"
    ));
    h.run("port web 80").ok().stdout(&format!("{OWN}:8001\n"));
    h.run("port web 80/udp").fails(1, &["no public port '80/udp' published for web"]);
    h.run("ps --format '{{.Ports}}'").ok().stdout(&format!(
        "7/udp, {OWN}:8090-8091->8090-8091/tcp, 8092-8093/tcp, {OWN}:8001->80/tcp, {OWN}:8002->81/tcp, {OWN}:8000->82/tcp\n"
    ));
    h.run("ps --filter publish=80-82 --format '{{.Names}}'").ok().stdout("web\n");
    h.run("ps --filter expose=8092/tcp --format '{{.Names}}'").ok().stdout("web\n");
    h.run("ps --filter publish=8092 --format '{{.Names}}'").ok().stdout("");
    h.run(&format!("run --rm -p {OWN}:8000-8002:80 busybox true"))
        .fails(125, &["every port of the range is taken", "8000-8002"]);
    h.run(&format!("run --rm -p {OWN}:8003:80 -p {OWN}:8003:81 busybox true"))
        .fails(125, &["8003/tcp: the port was asked for twice"]);
}

#[test]
fn exposed_ports_get_a_number_each() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name web -P --expose 80-81 --expose 80/udp -p 127.0.0.1::81 busybox sleep 100");
    let ports = h.run("port web").ok().out();
    let lines: Vec<_> = ports.lines().filter(|line| !line.contains("[::]")).collect();
    let starts = ["80/tcp -> 0.0.0.0:", "80/udp -> 0.0.0.0:", "81/tcp -> 127.0.0.1:"];
    assert_eq!(lines.len(), starts.len(), "{ports}");
    for (line, start) in lines.into_iter().zip(starts) {
        let number: u16 = line.strip_prefix(start).expect(line).parse().unwrap();
        assert_ne!(number, 0);
    }
}

#[test]
fn addresses_and_mtu_can_be_chosen() {
    let Some(h) = Hostel::new() else { return };
    let chosen = "--ip 192.0.2.9 --opt mtu=1400 --network bridge:subnet=fd83:7::/64,ip6=fd83:7::9";
    h.detached(&format!("--name web {chosen} --hostname web.example.org busybox sleep 100"));
    h.run("exec web cat /sys/class/net/eth0/mtu").ok().stdout("1400\n");
    h.run("exec web sh -c 'ip route | cut -d \" \" -f 1-3 && grep web /etc/hosts && grep server /etc/resolv.conf'")
        .ok()
        .stdout(
            "default via 192.0.2.2\n192.0.2.0/24 dev eth0\n192.0.2.9\tweb.example.org web\n\
             fd83:7::9\tweb.example.org web\nnameserver 192.0.2.3\n",
        );
    let settings = "{{with .NetworkSettings}}{{.Gateway}} {{.IPAddress}}/{{.IPPrefixLen}} {{.IPv6Gateway}} \
                    {{.GlobalIPv6Address}}/{{.GlobalIPv6PrefixLen}} [{{.MacAddress}}]{{end}}";
    h.args(&["inspect", "-f", settings, "web"])
        .ok()
        .stdout("192.0.2.2 192.0.2.9/24 fd83:7::2 fd83:7::9/64 []\n");
    let containers = "{{range .Containers}}{{.IPv4Address}} {{.IPv6Address}}{{end}}";
    h.args(&["network", "inspect", "-f", containers, "bridge"]).ok().stdout("192.0.2.9/24 fd83:7::9/64\n");
    h.run("stop -t 0 web").ok();
    h.args(&["inspect", "-f", settings, "web"]).ok().stdout(" /0  /0 []\n");
    let refused = [
        ("--ip 10.0.2.2", "10.0.2.2 is the gateway's address; choose another"),
        ("--ip 10.0.2.3", "name server's address"),
        ("--ip 127.0.0.5", "loopback"),
        ("--network bridge:subnet=10.9.0.0/30", "choose from /8 to /29"),
        ("--network none --ip 10.0.2.9", "conflicting options: ip and the network mode"),
        ("--opt mtu=1000", "mtu=1280..65535"),
        ("--mac-address 02:00:00:00:00:09", "no link layer"),
        ("--network-alias db", "nobody else could use the name"),
    ];
    for (flags, why) in refused {
        h.run(&format!("run --rm {flags} busybox true")).fails(125, &[why]);
    }
}

#[test]
fn a_flood_in_one_container_leaves_another_alone() {
    let Some(h) = Hostel::debian() else { return };
    let port = free_port();
    h.detached(&format!("--name web -p 127.0.0.1:{port}:80 debian nginx -g 'daemon off;'"));
    wait_for_server(port);
    // Connects and datagrams from ever new ports to ports of the host's loopback where nobody is.
    let flood = "python3 -c 'import socket\nn, held = 0, []\nwhile True:\n  n += 1\n  for kind in (1, 2):\n    \
                 s = socket.socket(socket.AF_INET, kind)\n    s.setblocking(False)\n    try:\n      \
                 s.connect((\"10.0.2.2\", n % 900 + 1))\n      s.send(b\"x\" * 1000)\n    except OSError:\n      pass\n    \
                 held.append(s)\n  if n == 3000:\n    print(\"flooding\", flush=True)\n  if n > 500:\n    held.pop(0).close()\n    \
                 held.pop(0).close()'";
    h.detached(&format!("--name flood --host-loopback all debian {flood}"));
    h.wait_for_log("flood", "flooding");
    for _ in 0..40 {
        assert_eq!(get(port, "/").unwrap(), b"served from the fixture\n");
    }
    // It is still at it, and its own network still answers.
    h.run("exec flood python3 -c 'import socket; print(socket.gethostbyname(\"host.docker.internal\"))'")
        .ok()
        .stdout("10.0.2.2\n");
    h.run("rm -f flood").ok();
}
