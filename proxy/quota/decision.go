package quota

import "github.com/ds01/ds01-proxy/policy"

// A decision is one about a request; p is what is promised where it is allowed.
type decision struct {
	policy.Gate
	ask  Ask
	each int64
	// own is what single containers use.
	own map[string]int64
	p   *promise
	// standing is what it was held against.
	standing policy.Standing
	// free is true where nothing more is wanted of the user's memory.
	free bool
}

// pass is the verdict about what asks for nothing more.
var pass = policy.Verdict{Outcome: policy.Allow, Rule: "quota"}

// make asks the rules; fill adds to a standing what the slice uses. b.mu is held.
func (d *decision) make(b *Book, a *account, fill func(*policy.Standing)) policy.Verdict {
	d.p, d.free = &promise{}, false
	except := d.ask.Container
	if d.ask.Update || d.ask.Unpause {
		except = ""
	}
	d.standing = b.standing(a, except, d.each, d.own)
	fill(&d.standing)
	c := a.containers[d.ask.Container]
	switch {
	case d.ask.Unpause:
		// It has its memory already.
		return d.Unpause(d.standing)
	case d.ask.Update:
		return d.update(b, a, c)
	case d.ask.Build:
		d.p.memory, d.p.build = d.ask.Memory, true
		return d.Memory(d.standing, d.ask.Memory)
	case d.ask.New:
		d.p.memory, d.p.gpus, d.p.arrives = d.ask.Memory, d.ask.GPUs.Count, true
		if v := d.Containers(d.standing); !v.Allowed() {
			return v
		}
		return d.share(d.ask.Memory, d.ask.GPUs)
	}
	return d.start(b, a, c)
}

// share asks about GPUs and memory.
func (d *decision) share(memory int64, gpus policy.GPUAsk) policy.Verdict {
	if v := d.GPUs(d.standing, gpus); !v.Allowed() {
		return v
	}
	return d.Memory(d.standing, memory)
}

// start decides about the start of a container, nil where the book does not have it.
func (d *decision) start(b *Book, a *account, c *Container) policy.Verdict {
	id, memory, gpus := d.ask.Container, d.ask.Memory, d.ask.GPUs
	if c != nil {
		memory, gpus = c.Memory, c.GPUs
	}
	if memory == 0 {
		memory = d.each
	}
	// A change of it may be under way.
	memory = max(memory, a.promised()[id].memory)
	*d.p = promise{of: id, starts: true, holds: true, memory: memory, gpus: gpus.Count}
	if c != nil && c.Running {
		if d.Accounting == policy.AccountCommitted || c.young(b.now()) {
			// It has what it asks for.
			d.free = true
			return pass
		}
		// What counts of it is its use, if it has not just died.
		return d.Memory(d.standing, max(0, memory-d.own[id]))
	}
	if d.CountRunning {
		if v := d.Containers(d.standing); !v.Allowed() {
			return v
		}
	}
	return d.share(memory, gpus)
}

// update decides about a change of a container by how much more counts of it from then
// on.
func (d *decision) update(b *Book, a *account, c *Container) policy.Verdict {
	*d.p = promise{of: d.ask.Container, limit: d.ask.Memory, memory: d.ask.Memory, restarts: d.ask.Restarts, version: b.version(d.ask.Container)}
	unknown := c == nil
	if unknown {
		c = &Container{}
	}
	other := a.promised()[d.ask.Container]
	changed := *c
	if d.ask.Memory > 0 {
		changed.Memory = d.ask.Memory
	}
	if d.ask.Restarts != nil {
		changed.Restarts = *d.ask.Restarts
	}
	var before, after int64
	counted := c.Running || c.may() || other.holds
	if counted {
		before = max(c.weight(d.each), other.memory)
	}
	// What counts now may run before the change of its restart policy is made.
	d.p.holds = counted || changed.may() || unknown
	if d.p.holds {
		after = max(changed.weight(d.each), other.memory)
	}
	if d.p.holds && !counted {
		if v := d.GPUs(d.standing, c.GPUs); !v.Allowed() {
			return v
		}
	}
	if after <= before {
		d.free = true
		return pass
	}
	return d.Memory(d.standing, after-before)
}
