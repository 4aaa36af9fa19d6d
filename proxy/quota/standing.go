package quota

import (
	"cmp"
	"slices"

	"github.com/ds01/ds01-proxy/policy"
)

// A promise is what a request under way was given.
type promise struct {
	// turn is the book's in which it was made.
	turn uint64
	// memory is what it may come to take; for a container that is there already, what
	// that one's limit may come to be, where that is more.
	memory int64
	gpus   int
	// of is the container that is started or changed, "" where there is none yet.
	of string
	// starts is true where it may run from this on, holds where it counts.
	starts, holds bool
	// arrives is true where a container comes of it, build where steps do.
	arrives, build bool
	// limit and restarts are what an update makes of a container, where it says so, and
	// version what was known of that container before.
	limit    int64
	restarts *bool
	version  uint64
}

// promised are the promises about containers that there are, those about one in one.
func (a *account) promised() map[string]promise {
	all := make(map[string]promise)
	for p := range a.promises {
		if p.of == "" {
			continue
		}
		one := all[p.of]
		one.of = p.of
		one.memory, one.gpus = max(one.memory, p.memory), max(one.gpus, p.gpus)
		one.starts, one.holds = one.starts || p.starts, one.holds || p.holds
		all[p.of] = one
	}
	return all
}

// standing adds up what a user has beside the container except, which is being decided
// about. Containers without a limit count as each; own is what young ones use by
// themselves. b.mu is held.
func (b *Book) standing(a *account, except string, each int64, own map[string]int64) policy.Standing {
	var (
		s policy.Standing
		// Builds were promised what their steps take.
		steps struct{ pending, committed int64 }
		build int64
	)
	promised := a.promised()
	for id, c := range a.containers {
		p := promised[id]
		delete(promised, id)
		if !c.Step {
			s.Containers++
			switch {
			case c.Running:
				s.Running++
			case p.starts && id != except:
				s.Starting++
			}
		}
		if id == except || !c.Running && !c.may() && !p.holds {
			continue
		}
		if c.GPUs.Any() {
			s.GPUs += float64(c.GPUs.Count)
			s.Holders = append(s.Holders, holder(c))
		}
		committed := max(c.weight(each), p.memory)
		pending := committed
		switch {
		case !c.Running || p.starts:
		case c.young(b.now()):
			pending = max(0, committed-own[id])
		default:
			pending = min(committed, committed-c.weight(each)+c.risen(b.now()))
		}
		if c.Step {
			steps.pending, steps.committed = policy.Sum(steps.pending, pending), policy.Sum(steps.committed, committed)
			continue
		}
		s.Pending, s.Committed = policy.Sum(s.Pending, pending), policy.Sum(s.Committed, committed)
	}
	for id, p := range promised {
		// The book does not have it, or not any more.
		if id != except && p.holds {
			s.GPUs += float64(p.gpus)
			s.Pending, s.Committed = policy.Sum(s.Pending, p.memory), policy.Sum(s.Committed, p.memory)
		}
	}
	kept := a.kept()
	for p := range a.promises {
		if p.of != "" || kept[p] {
			continue
		}
		s.GPUs += float64(p.gpus)
		if p.arrives {
			s.Arriving++
		}
		if p.build {
			build = policy.Sum(build, p.memory)
			continue
		}
		s.Pending, s.Committed = policy.Sum(s.Pending, p.memory), policy.Sum(s.Committed, p.memory)
	}
	s.Pending = policy.Sum(s.Pending, max(build, steps.pending))
	s.Committed = policy.Sum(s.Committed, max(build, steps.committed))
	slices.Sort(s.Holders)
	return s
}

// kept are the promises whose containers are in the book before the answer is that tells
// which they are: the Engine tells of a container before it answers its maker.
func (a *account) kept() map[*promise]bool {
	var arriving []*promise
	for p := range a.promises {
		if p.arrives {
			arriving = append(arriving, p)
		}
	}
	if len(arriving) == 0 {
		return nil
	}
	// The latest may have the fewest.
	slices.SortFunc(arriving, func(x, y *promise) int { return cmp.Compare(y.turn, x.turn) })
	kept, taken := make(map[*promise]bool), make(map[string]bool)
	for _, p := range arriving {
		for id, c := range a.containers {
			if !taken[id] && !c.claimed && !c.Step && c.first > p.turn && c.Memory == p.memory && c.GPUs.Count == p.gpus {
				kept[p], taken[id] = true, true
				break
			}
		}
	}
	return kept
}

func holder(c *Container) string {
	name := c.Name
	if name == "" {
		name = c.ID[:min(12, len(c.ID))]
	}
	if c.GPUs.All {
		return name + " (all)"
	}
	return name
}
