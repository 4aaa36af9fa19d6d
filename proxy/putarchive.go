package proxy

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/ds01/ds01-proxy/policy"
)

// putArchive lets an archive into a container unless it has device nodes in it: the
// Engine unpacks it as root, into what is mounted there too.
func putArchive(x *exchange) (policy.Verdict, error) {
	obj, v, err := x.pathContainer(policy.Change)
	if err == nil && v.Allowed() && slices.ContainsFunc(x.srv.Staged.Of(obj.ID), unmapped) {
		return policy.CopyUnmapped(x.profile()), nil
	}
	if err != nil || !v.Allowed() {
		return v, err
	}
	if v, err = x.with(v)(x.heldArchive(obj.ID, obj.Owner)); err != nil || !v.Allowed() || x.profile().OwnershipOnly || x.subject.Mode != policy.ModeFull {
		return v, err
	}
	x.filterBody(copyPlain)
	return v, nil
}

// filterBody forwards what filter makes of the client's body.
func (x *exchange) filterBody(filter func(dst io.Writer, src io.Reader) error) {
	pr, pw := io.Pipe()
	done := make(chan struct{})
	body := x.r.Body
	go func() {
		defer close(done)
		pw.CloseWithError(filter(pw, body))
	}()
	x.atEnd(func() {
		// Whatever became of the request, nothing reads its body after it.
		pr.CloseWithError(errClientGone)
		_ = body.Close()
		<-done
	})
	x.stream = pr
}

// packed are the first bytes by which the Engine takes an archive for a compressed one.
var packed = [][]byte{{0x1f, 0x8b, 0x08}, []byte("BZh"), {0xfd, '7', 'z', 'X', 'Z', 0}, {0x28, 0xb5, 0x2f, 0xfd}}

// copyPlain copies an archive, unpacked, as it is, and stops before a device node.
func copyPlain(dst io.Writer, src io.Reader) error {
	plain, err := decompress(src)
	if err != nil {
		return uncopied("%v", err)
	}
	defer plain.Close()
	br := bufio.NewReaderSize(plain, bufferSize)
	head, _ := br.Peek(6)
	for _, magic := range packed {
		if bytes.HasPrefix(head, magic) {
			return uncopied("it is packed twice, or looks so")
		}
	}
	if len(head) > 3 && head[1] == 0x2a && head[2] == 0x4d && head[3] == 0x18 {
		return uncopied("it is packed twice, or looks so")
	}
	rec := &recorder{r: br}
	in := tar.NewReader(rec)
	buf := getBuffer()
	defer putBuffer(buf)
	for {
		h, err := in.Next()
		switch {
		case errors.Is(err, io.EOF):
			return rec.flush(dst)
		case err != nil:
			return uncopied("it is not a whole tar archive: %v", err)
		case h.Typeflag == tar.TypeBlock, h.Typeflag == tar.TypeChar:
			return &refusedBody{verdict: policy.Verdict{Rule: "device-nodes", Reason: fmt.Sprintf(
				"Permission denied: the archive has the device node %.200q, and device nodes are not allowed here (rule device-nodes). Leave it out.", h.Name)}}
		}
		// What was read up to here is a header that is let through.
		for err := rec.flush(dst); ; err = rec.flush(dst) {
			if err != nil {
				return err
			}
			if _, err := in.Read(*buf); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return uncopied("it is not a whole tar archive: %v", err)
			}
		}
		if err := rec.flush(dst); err != nil {
			return err
		}
	}
}

func uncopied(format string, args ...any) error {
	return &refusedBody{err: badRequest("the archive cannot be copied: "+format, args...)}
}

// A recorder keeps what was read through it until it is flushed.
type recorder struct {
	r    io.Reader
	kept []byte
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.kept = append(r.kept, p[:n]...)
	return n, err
}

func (r *recorder) flush(w io.Writer) error {
	_, err := w.Write(r.kept)
	r.kept = r.kept[:0]
	return err
}
