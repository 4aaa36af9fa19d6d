package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// RemapRoot is the uid that container root has on the host with StartRemapped.
const RemapRoot = 700000

// StartRemapped starts an Engine that maps users. It runs in a mount namespace where
// the files of accounts are copies with one more account; see Inside.
func StartRemapped(ctx context.Context, dir string) (*Engine, error) {
	for name, more := range map[string]string{"passwd": "ds01remap:x:64999:64999::/nonexistent:/usr/sbin/nologin\n", "group": "ds01remap:x:64999:\n"} {
		text, err := os.ReadFile("/etc/" + name)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), append(text, more...), 0o644)
		}
		if err != nil {
			return nil, fmt.Errorf("files of accounts: %w", err)
		}
	}
	ranges := fmt.Sprintf("ds01remap:%d:65536\n", RemapRoot)
	var err error
	for _, name := range []string{"subuid", "subgid"} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(ranges), 0o644))
		if _, missing := os.Stat("/etc/" + name); missing != nil {
			// A package that knows it makes it empty, too.
			err = errors.Join(err, os.WriteFile("/etc/"+name, nil, 0o644))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("files of accounts: %w", err)
	}
	const script = `cd "$1"; shift
for f in passwd group subuid subgid; do mount --bind "$f" "/etc/$f" || exit 1; done
exec "$@"`
	return startEngine(ctx, &Engine{
		Dir: dir, Socket: filepath.Join(dir, "docker.sock"), flags: []string{"--userns-remap", "ds01remap"},
		wrap: []string{"unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", dir},
	})
}

// Inside writes a command that runs binary in the Engine's mount namespace, and
// returns its path.
func (e *Engine) Inside(binary string) (string, error) {
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return "", fmt.Errorf("nsenter is not installed: %w", err)
	}
	path := filepath.Join(e.Dir, "inside")
	text := "#!/bin/sh\nexec " + nsenter + " --mount=/proc/" + strconv.Itoa(e.cmd.Process.Pid) + "/ns/mnt -- " + binary + ` "$@"` + "\n"
	return path, os.WriteFile(path, []byte(text), 0o755)
}
