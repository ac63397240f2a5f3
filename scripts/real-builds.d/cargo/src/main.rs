fn main() {
    println!("hello from cargo {}", itoa::Buffer::new().format(6 * 7));
}
