package sender

// Hosts counts the hosts in memory.
func Hosts(p *Pool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.hosts)
}
