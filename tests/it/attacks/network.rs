//! What may not be reached from a container's network.

use std::net::UdpSocket;

use super::{SYSCALLS, python};
use crate::harness::Hostel;

#[test]
fn forged_sources_and_addresses_of_the_machine_reach_nothing() {
    let Some(h) = Hostel::debian() else { return };
    let listener = UdpSocket::bind("0.0.0.0:0").unwrap();
    let loopback = UdpSocket::bind("127.0.0.1:0").unwrap();
    for socket in [&listener, &loopback] {
        socket.set_nonblocking(true).unwrap();
    }
    let ports = [&listener, &loopback].map(|socket| socket.local_addr().unwrap().port());
    let program = format!(
        "{SYSCALLS}
import struct
def checksum(b):
    s = sum(struct.unpack('!%dH' % (len(b) // 2), b)); s = (s >> 16) + (s & 0xffff); return ~(s + (s >> 16)) & 0xffff
def packet(src, dst, port):
    udp = struct.pack('!HHHH', 4000, port, 12, 0) + b'evil'
    head = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, socket.inet_aton(src), socket.inet_aton(dst))
    return head[:10] + struct.pack('!H', checksum(head)) + head[12:] + udp
raw = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0x0800)
name = [n for _, n in socket.if_nameindex() if n != 'lo'][0]
for port in {ports:?}:
    for src in ('127.0.0.1', '10.0.2.2', '10.0.2.100', '8.8.8.8', '0.0.0.0'):
        for dst in ('127.0.0.1', '127.9.9.9', '0.0.0.0', '10.0.2.2', '10.0.2.3', '10.0.2.255', '255.255.255.255', '224.0.0.1', '169.254.169.254'):
            try: raw.sendto(packet(src, dst, port), (name, 0x0800, 0, 0, b'\\xff' * 6))
            except OSError: pass
# An answer comes after all of those have been looked at.
query = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); query.settimeout(10)
server = [line.split()[1] for line in open('/etc/resolv.conf') if line.startswith('nameserver')][0]
query.sendto(struct.pack('!HHHHHH', 7, 0x100, 1, 0, 0, 0) + b'\\x04host\\x06docker\\x08internal\\0\\0\\1\\0\\1', (server, 53))
print(len(query.recv(512)) > 12)"
    );
    python(&h, &[], &program).ok().stdout("True\n");
    for socket in [&listener, &loopback] {
        let heard = socket.recv_from(&mut [0; 64]);
        assert!(heard.is_err(), "a forged packet arrived: {heard:?}");
    }
}

#[test]
fn metadata_and_loopback_addresses_are_closed() {
    let Some(h) = Hostel::debian() else { return };
    let listener = std::net::TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let program = format!(
        "{SYSCALLS}
for host, port in (('169.254.169.254', 80), ('169.254.170.2', 80), ('100.100.100.200', 80), ('168.63.129.16', 80),
                   ('fd00:ec2::254', 80), ('fd20:ce::254', 80), ('64:ff9b::a9fe:a9fe', 80), ('64:ff9b::7f00:1', {port}),
                   ('host.docker.internal', {port}), ('127.0.0.1', {port}), ('::1', {port})):
    try:
        socket.create_connection((host, port), 20)
        print('reached', host)
    except TimeoutError as e: print('no answer from', host)
    except OSError: pass
print('end')"
    );
    python(&h, &[], &program).ok().stdout("end\n");
}
