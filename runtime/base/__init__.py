"""Small tools that know no container: errors, records, codecs, logging."""
