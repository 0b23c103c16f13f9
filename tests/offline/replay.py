"""Replays a dm-log-writes log over an image: written from the kernel's struct layout alone (drivers/md/dm-log-writes.c).

replay.py LOG IMAGE OUT: writes OUT/<n> with the image as of the n-th mark, and prints one line a mark: n, text.
"""

import os
import struct
import sys

FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8


def main():
    log_path, image_path, out = sys.argv[1:]
    with open(image_path, "rb") as f:
        image = bytearray(f.read())
    with open(log_path, "rb") as log:
        # struct log_write_super { __le64 magic, version, nr_entries; __le32 sectorsize; }
        magic, version, entries, sectorsize = struct.unpack("<QQQI", log.read(28))
        assert magic == 0x6A736677736872, hex(magic)
        assert version == 1, version
        log.seek(sectorsize)
        flushes = marks = 0
        for _ in range(entries):
            # struct log_write_entry { __le64 sector, nr_sectors, flags, data_len; char data[]; }, one sector
            head = log.read(sectorsize)
            assert len(head) == sectorsize, "the log ends early"
            sector, sectors, flags, length = struct.unpack("<QQQQ", head[:32])
            size = sectors * sectorsize
            at = sector * sectorsize
            assert at + size <= len(image), "past the end of the image"
            assert flags & ~(FLUSH | FUA | DISCARD | MARK) == 0, flags
            if flags & DISCARD:
                image[at : at + size] = bytes(size)
            elif size:
                data = log.read(size)
                assert len(data) == size, "the log ends early"
                image[at : at + size] = data
            flushes += bool(flags & FLUSH)
            if flags & MARK:
                text = head[32 : 32 + length].decode()
                with open(os.path.join(out, str(marks)), "wb") as f:
                    f.write(image)
                print(marks, text)
                marks += 1
        assert log.read(1) == b"", "bytes behind the last entry"
    print("flushes", flushes)


main()
