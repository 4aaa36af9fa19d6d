package units

import (
	"context"
	"fmt"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// DialSystemd connects to the machine's systemd, over the system bus or, where there is
// none, as root, directly.
func DialSystemd(ctx context.Context) (Bus, error) {
	// The connection ends with the context it is made with, so it gets one of its own.
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	conn, err := systemd.NewWithContext(own)
	if err == nil && !stop() {
		conn.Close()
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return &bus{conn, cancel}, nil
}

// bus is a Bus over D-Bus.
type bus struct {
	conn   *systemd.Conn
	cancel context.CancelFunc
}

func (b *bus) Close() error {
	b.conn.Close()
	b.cancel()
	return nil
}

func (b *bus) Reload(ctx context.Context) error { return b.conn.ReloadContext(ctx) }

func (b *bus) Set(ctx context.Context, unit string, properties []systemd.Property) error {
	return b.conn.SetUnitPropertiesContext(ctx, unit, true, properties...)
}

func (b *bus) Start(ctx context.Context, unit string, properties []systemd.Property) error {
	// The library sends the result under a lock: without a buffer, one that nobody waits
	// for would stop it.
	result := make(chan string, 1)
	var err error
	if properties == nil {
		_, err = b.conn.StartUnitContext(ctx, unit, "replace", result)
	} else {
		_, err = b.conn.StartTransientUnitContext(ctx, unit, "replace", properties, result)
	}
	if err != nil {
		return err
	}
	select {
	case r := <-result:
		if r != "done" {
			return *dbus.NewError("org.freedesktop.systemd1.Job", []any{"systemd's job is " + r + "; see systemctl status " + unit})
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for systemd's job: %w", ctx.Err())
	}
}
