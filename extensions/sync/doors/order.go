package doors

// order sorts n rows so that each comes behind those that it needs. Needs that close a circle are returned and not met.
func order(n int, needs func(i int) []int) (sorted []int, circular map[int][]int) {
	const (
		unseen = iota
		open
		done
	)
	state, circular := make([]int, n), map[int][]int{}
	type frame struct {
		at   int
		rest []int
	}
	for start := range n {
		if state[start] != unseen {
			continue
		}
		state[start] = open
		stack := []frame{{start, needs(start)}} // chains can be as long as the batch
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if len(top.rest) == 0 {
				state[top.at] = done
				sorted = append(sorted, top.at)
				stack = stack[:len(stack)-1]
				continue
			}
			next := top.rest[0]
			top.rest = top.rest[1:]
			switch state[next] {
			case unseen:
				state[next] = open
				stack = append(stack, frame{next, needs(next)})
			case open:
				circular[top.at] = append(circular[top.at], next)
			}
		}
	}
	return sorted, circular
}
