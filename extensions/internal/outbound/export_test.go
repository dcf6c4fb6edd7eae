package outbound

// Kept counts the breakers in memory.
func Kept(b *Breakers) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.kept)
}
