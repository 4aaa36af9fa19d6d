package integration

import (
	"bytes"
	wire "encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// A fuse is a file system that the test itself answers for: a directory of alice's
// with a file. What it is asked and how it answers is said in linux/fuse.h.
type fuse struct {
	dir   string
	fd    int
	ended chan struct{}
	once  sync.Once
	// mapped is true where it says that it can be mounted with a map.
	mapped bool
	// answers is how many questions it answers before it falls silent; below 0, all.
	answers int
}

// The kinds of question.
const (
	fuseLookup, fuseForget, fuseGetattr   = 1, 2, 3
	fuseOpen, fuseRead, fuseStatfs        = 14, 15, 17
	fuseRelease, fuseFlush, fuseInit      = 18, 25, 26
	fuseOpendir, fuseReaddir, fuseReldir  = 27, 28, 29
	fuseAccess, fuseInterrupt, fuseDestry = 34, 36, 38
	fuseBatchForget                       = 42
)

type fuseQuestion struct {
	Len, Op              uint32
	Unique, Node         uint64
	UID, GID, PID, Extra uint32
}

type fuseAttr struct {
	Ino, Size, Blocks, Atime, Mtime, Ctime                                            uint64
	AtimeNsec, MtimeNsec, CtimeNsec, Mode, Links, UID, GID, Device, BlockSize, Unused uint32
}

// fuseText is what the file says.
const fuseText = "of a file system of the test's own"

// mountFuse mounts it on a new directory with further options.
func mountFuse(t *testing.T, dir string, mapped bool, answers int, options string, flags uintptr) *fuse {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := &fuse{dir: dir, fd: fd, ended: make(chan struct{}), mapped: mapped, answers: answers}
	if mapped {
		options += ",default_permissions"
	}
	if err := unix.Mount("test", dir, "fuse", flags, fmt.Sprintf("fd=%d,rootmode=40755,%s", fd, options)); err != nil {
		t.Fatal(errors.Join(err, unix.Close(fd)))
	}
	go f.serve()
	t.Cleanup(func() {
		if err := f.abort(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// abort ends it: whoever waits for an answer gets an error.
func (f *fuse) abort() (err error) {
	f.once.Do(func() {
		err = unix.Unmount(f.dir, unix.MNT_FORCE|unix.MNT_DETACH)
		<-f.ended
		err = errors.Join(err, unix.Close(f.fd))
	})
	return err
}

// serve answers until the file system ends.
func (f *fuse) serve() {
	defer close(f.ended)
	buf := make([]byte, 1<<17)
	for {
		n, err := unix.Read(f.fd, buf)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOENT):
			continue
		case err != nil:
			return
		}
		var q fuseQuestion
		if _, err := wire.Decode(buf[:n], wire.NativeEndian, &q); err != nil {
			return
		}
		switch q.Op {
		case fuseForget, fuseBatchForget, fuseInterrupt:
			continue
		case fuseInit:
		default:
			if f.answers == 0 {
				continue
			}
			f.answers--
		}
		answer, errno := f.answer(&q, buf[40:n])
		out, err := wire.Append(nil, wire.NativeEndian, struct {
			Len    uint32
			Error  int32
			Unique uint64
		}{uint32(16 + len(answer)), -int32(errno), q.Unique})
		if err != nil {
			return
		}
		// An answer that comes too late is nobody's.
		_, _ = unix.Write(f.fd, append(out, answer...))
	}
}

func (f *fuse) attr(node uint64) fuseAttr {
	a := fuseAttr{Ino: node, Mode: unix.S_IFDIR | 0o755, Links: 2, UID: lab.Alice.UID, GID: lab.Alice.UID, BlockSize: 4096}
	if node != 1 {
		a.Mode, a.Links, a.Size = unix.S_IFREG|0o644, 1, uint64(len(fuseText))
	}
	return a
}

// answer answers one question; nothing may be kept in the kernel's caches.
func (f *fuse) answer(q *fuseQuestion, rest []byte) ([]byte, unix.Errno) {
	var v any
	switch q.Op {
	case fuseInit:
		const extended, mapped = 1 << 30, 1 << (40 - 32)
		reply := struct {
			Major, Minor, ReadAhead, Flags uint32
			Background, Congestion         uint16
			MaxWrite, Granularity          uint32
			MaxPages, Alignment            uint16
			Flags2                         uint32
			Unused                         [7]uint32
		}{Major: 7, Minor: 41, MaxWrite: 4096, Granularity: 1}
		if f.mapped {
			reply.Flags, reply.Flags2 = extended, mapped
		}
		v = reply
	case fuseLookup:
		if name, _, _ := bytes.Cut(rest, []byte{0}); string(name) != "file" {
			return nil, unix.ENOENT
		}
		v = struct {
			Node, Generation, Valid, AttrValid uint64
			Nsec, AttrNsec                     uint32
			Attr                               fuseAttr
		}{Node: 2, Attr: f.attr(2)}
	case fuseGetattr:
		v = struct {
			Valid      uint64
			Nsec, None uint32
			Attr       fuseAttr
		}{Attr: f.attr(q.Node)}
	case fuseOpen, fuseOpendir:
		v = [16]byte{}
	case fuseStatfs:
		v = [80]byte{}
	case fuseRead:
		return []byte(fuseText), 0
	case fuseReaddir, fuseRelease, fuseReldir, fuseFlush, fuseAccess, fuseDestry:
		return nil, 0
	default:
		return nil, unix.ENOSYS
	}
	out, err := wire.Append(nil, wire.NativeEndian, v)
	if err != nil {
		return nil, unix.EIO
	}
	return out, 0
}
