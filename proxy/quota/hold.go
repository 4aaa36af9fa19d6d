package quota

// A Hold is what was promised to a request; nil means nothing.
type Hold struct {
	book *Book
	a    *account
	p    *promise
	// Warning is for the maker of a container.
	Warning string
}

// Drop ends a promise of which nothing came.
func (h *Hold) Drop() {
	if h == nil {
		return
	}
	h.book.mu.Lock()
	defer h.book.mu.Unlock()
	if _, stands := h.a.promises[h.p]; stands && h.p.of != "" {
		// No event tells of a start that failed, and it changes what the Engine does next.
		h.book.again(h.p.of)
	}
	delete(h.a.promises, h.p)
}

// Made ends a promise: the container that it was for is there.
func (h *Hold) Made(c Container) {
	if h == nil {
		return
	}
	h.book.mu.Lock()
	defer h.book.mu.Unlock()
	delete(h.a.promises, h.p)
	c.claimed = true
	if known := h.a.containers[c.ID]; known != nil {
		known.claimed = true
		return
	}
	if _, heard := h.book.changed[c.ID]; !heard {
		// Of what the book heard and does not have, nothing is left.
		h.book.note(c)
	}
}

// Started ends a promise: the container runs from now on.
func (h *Hold) Started() {
	h.change(func(c *Container) { c.Running, c.Fresh, c.Began = true, false, h.book.now() })
}

// Updated ends a promise: the container's limit, and that the Engine may start it by itself,
// are what was asked for. That it may not any more is believed once the Engine says so: it
// may just have done it.
func (h *Hold) Updated() {
	h.change(func(c *Container) {
		// Of two changes at once nobody knows which the Engine made last.
		alone := h.book.version(c.ID) == h.p.version && h.a.promised()[c.ID].of == ""
		if h.p.limit > c.Memory || h.p.limit > 0 && alone {
			c.Memory = h.p.limit
		}
		c.Restarts = c.Restarts || h.p.restarts != nil && *h.p.restarts
	})
}

// change ends a promise and notes what became of its container.
func (h *Hold) change(f func(c *Container)) {
	if h == nil {
		return
	}
	h.book.mu.Lock()
	defer h.book.mu.Unlock()
	delete(h.a.promises, h.p)
	if c := h.a.containers[h.p.of]; c != nil {
		changed := *c
		f(&changed)
		h.book.note(changed)
	}
}
