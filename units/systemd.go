package units

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"github.com/ds01/ds01-proxy/policy"
)

// Booted reports whether systemd is the machine's init, as sd_booted(3) does.
func Booted() bool {
	st, err := os.Lstat("/run/systemd/system")
	return err == nil && st.IsDir()
}

// unitExists is what systemd calls a transient unit that is loaded or has a file.
const unitExists = "org.freedesktop.systemd1.UnitExists"

// A Bus is a connection to systemd. One that is also an io.Closer is closed when it is
// given up.
//
// A systemd that says no answers with a dbus.Error; any other error means that the
// connection is lost.
type Bus interface {
	// Reload makes systemd read changed unit files.
	Reload(ctx context.Context) error
	// Start starts a unit and waits for it: a transient one with these properties, or,
	// where they are nil, one that is loaded or has a file; one that runs stays as it is.
	Start(ctx context.Context, unit string, properties []systemd.Property) error
	// Set changes properties of a loaded unit until the next boot.
	Set(ctx context.Context, unit string, properties []systemd.Property) error
}

// Systemd keeps slices. It may be used from any number of goroutines, which take turns.
type Systemd struct {
	// Dial connects to systemd; DialSystemd unless a test says otherwise. A lost
	// connection is dialled again by the next call, or once within a call.
	Dial func(context.Context) (Bus, error)
	// Dir is where unit files are written, such as /etc/systemd/system. Where it is "",
	// slices are transient: gone at the next boot, without a file of their own in /etc.
	Dir string
	// Timeout bounds one call, dialling included; 30 s where it is 0.
	Timeout time.Duration

	mu  sync.Mutex
	bus Bus
	// unread is true while files are written that systemd was not told of.
	unread bool
}

// Wanted is a user's slice and what it may use.
type Wanted struct {
	// Group is any name; it is sanitised. User is a component that Slice made.
	Group, User string
	// Limits are none where nil.
	Limits *policy.Aggregate
}

// Ensure makes ds01.slice, the group's and the user's run, and the user's have the
// limits, also where it runs already. A nil aggregate and a nil field are no limit. On
// cgroup v1, systemd leaves MemoryHigh out.
func (s *Systemd) Ensure(ctx context.Context, group, user string, a *policy.Aggregate) error {
	return s.EnsureAll(ctx, []Wanted{{group, user, a}})
}

// EnsureAll is Ensure for many users, with at most one reload of systemd. One user's error
// does not keep the others from theirs.
func (s *Systemd) EnsureAll(ctx context.Context, all []Wanted) error {
	timeout := s.Timeout
	if timeout == 0 {
		timeout = 30 * time.Second
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	var valid []Wanted
	for _, w := range all {
		if err := s.write(w); err != nil {
			errs = append(errs, fmt.Errorf("ensure %s: %w", userSlice(w.Group, w.User), err))
			continue
		}
		valid = append(valid, w)
	}
	if s.unread {
		if err := s.call(ctx, timeout, func(ctx context.Context, b Bus) error { return b.Reload(ctx) }); err != nil {
			return errors.Join(append(errs, fmt.Errorf("reload systemd: %w", err))...)
		}
		s.unread = false
	}
	done := map[string]error{}
	for _, w := range valid {
		if err := s.start(ctx, timeout, w, done); err != nil {
			errs = append(errs, fmt.Errorf("ensure %w", err))
		}
	}
	return errors.Join(errs...)
}

// write checks what is wanted and writes its files where there are to be any.
func (s *Systemd) write(w Wanted) error {
	files, err := Render(w.Group, w.User, w.Limits)
	if err != nil || s.Dir == "" {
		return err
	}
	for _, f := range files {
		changed, err := install(s.Dir, f)
		s.unread = s.unread || changed
		if err != nil {
			return fmt.Errorf("write unit file: %w", err)
		}
	}
	return nil
}

// start starts the three slices and sets their properties, each that is not done.
func (s *Systemd) start(ctx context.Context, timeout time.Duration, w Wanted, done map[string]error) error {
	user := userSlice(w.Group, w.User)
	for _, unit := range []string{rootSlice, groupSlice(w.Group), user} {
		err, was := done[unit]
		if !was || unit == user {
			properties := accountingProperties()
			if unit == user {
				properties = append(properties, limitProperties(w.Limits)...)
			}
			err = s.call(ctx, timeout, func(ctx context.Context, b Bus) error { return s.run(ctx, b, unit, properties) })
			done[unit] = err
		}
		if err != nil {
			return fmt.Errorf("%s: %w", unit, err)
		}
	}
	return nil
}

func (s *Systemd) run(ctx context.Context, b Bus, unit string, properties []systemd.Property) error {
	if s.Dir == "" {
		err := b.Start(ctx, unit, properties)
		var reply dbus.Error
		switch {
		case err == nil:
			return nil
		case !errors.As(err, &reply) || reply.Name != unitExists:
			return fmt.Errorf("start: %w", err)
		}
		// It runs, or has a file and does not.
	}
	if err := b.Start(ctx, unit, nil); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if err := b.Set(ctx, unit, properties); err != nil {
		return fmt.Errorf("set properties: %w", err)
	}
	return nil
}

// call runs f with a connection, and once more with a new one if the first is lost.
func (s *Systemd) call(ctx context.Context, timeout time.Duration, f func(context.Context, Bus) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	kept := s.bus != nil
	for {
		if s.bus == nil {
			b, err := s.Dial(ctx)
			if err != nil {
				return fmt.Errorf("connect to systemd: %w", err)
			}
			s.bus = b
		}
		err := f(ctx, s.bus)
		if err == nil || errors.As(err, new(dbus.Error)) {
			return err
		}
		if c, ok := s.bus.(io.Closer); ok {
			_ = c.Close()
		}
		s.bus = nil
		if !kept || ctx.Err() != nil {
			return err
		}
		kept = false
	}
}

func accountingProperties() []systemd.Property {
	var out []systemd.Property
	for _, what := range accounting {
		out = append(out, systemd.Property{Name: what, Value: dbus.MakeVariant(true)})
	}
	return out
}

// limitProperties are what limitsText says, in D-Bus's units: microseconds of CPU time
// per second, bytes, tasks; the largest number is no limit.
func limitProperties(a *policy.Aggregate) []systemd.Property {
	if a == nil {
		a = &policy.Aggregate{}
	}
	property := func(name string, v *int64, unit uint64) systemd.Property {
		n := uint64(math.MaxUint64)
		if v != nil {
			n = uint64(*v) * unit
		}
		return systemd.Property{Name: name, Value: dbus.MakeVariant(n)}
	}
	return []systemd.Property{
		property("CPUQuotaPerSecUSec", a.CPUQuota, 10_000),
		property("MemoryMax", a.MemoryMax, 1),
		property("MemoryHigh", a.MemoryHigh, 1),
		property("TasksMax", a.TasksMax, 1),
	}
}
